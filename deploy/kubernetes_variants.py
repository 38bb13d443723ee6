"""The agent's manifest for external nodes: agent.yaml, and what differs for a site.

Kind and site are a node's for good. They come from labels that a kubelet cannot give itself (the API server's
admission refuses it), and each site has a DaemonSet, because agents cannot read labels.
"""

from __future__ import annotations

from events.subjects import check_label

RESTRICTED = "isthmus.node-restriction.kubernetes.io"
_KIND = f"- {{key: {RESTRICTED}/kind, operator: NotIn, values: [external]}}"


def external(agent: str, site: str) -> str:
    """The DaemonSet of the external nodes of ``site``, from the text of agent.yaml. Raises Refused."""
    check_label(site, "site")
    name = f"isthmus-agent-external-{site}"
    indent = " " * 18
    changes = (
        ("name: isthmus-agent\n  namespace", f"name: {name}\n  namespace"),
        ("kubernetes.io/name: isthmus-agent\n", f"kubernetes.io/name: {name}\n"),
        (
            _KIND,
            (
                f"- {{key: {RESTRICTED}/kind, operator: In, values: [external]}}\n"
                f'{indent}- {{key: {RESTRICTED}/site, operator: In, values: ["{site}"]}}'
            ),
        ),
        (
            "- --ca=/etc/isthmus/ca.pem\n",
            f"- --ca=/etc/isthmus/ca.pem\n            - --kind=external\n            - --site={site}\n",
        ),
    )
    for old, new in changes:
        if old not in agent:
            raise AssertionError(f"agent.yaml has no {old!r}")
        agent = agent.replace(old, new)
    _, _, rest = agent.partition("\n")
    return (
        f"# The agent of external nodes of the site {site}: kubectl label node NAME {RESTRICTED}/kind=external "
        f"{RESTRICTED}/site={site}\n{rest}"
    )
