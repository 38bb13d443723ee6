"""Variants of the manifests: the agents of external nodes, and a controller that evicts pods.

Kind and site of a node are for good. They come from labels that a kubelet cannot give itself (the API
server's admission refuses it), and each site has a DaemonSet, because agents cannot read labels.
"""

from __future__ import annotations

from collections.abc import Callable

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
        agent = _replaced(agent, old, new)
    _, _, rest = agent.partition("\n")
    return (
        f"# The agent of external nodes of the site {site}: kubectl label node NAME {RESTRICTED}/kind=external "
        f"{RESTRICTED}/site={site}\n{rest}"
    )


def evicting() -> dict[str, Callable[[str], str]]:
    """Name of a manifest → what makes of its text the one of a controller that evicts stale pods."""
    rights = """\
  - apiGroups: [""]
    resources: [pods]
    verbs: [list]
  - apiGroups: [""]
    resources: [pods/eviction]
    verbs: [create]
"""
    events = "  - apiGroups: [events.k8s.io]\n    resources: [events]\n    verbs: [create, patch]\n"
    option = "            - --kubernetes\n"
    return {
        "rbac.yaml": lambda text: _replaced(text, events, events + rights),
        "controller.yaml": lambda text: _replaced(text, option, f"{option}            - --evict-stale-pods\n"),
    }


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise AssertionError(f"the manifest has no {old!r}")
    return text.replace(old, new)
