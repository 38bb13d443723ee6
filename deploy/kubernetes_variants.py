"""Variants of the manifests: the agents of external nodes, and the controller's options.

Kind and site of a node are for good. They come from labels that a kubelet cannot give itself (the API
server's admission refuses it), and each site has a DaemonSet, because agents cannot read labels.
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
        agent = _replaced(agent, old, new)
    _, _, rest = agent.partition("\n")
    return (
        f"# The agent of external nodes of the site {site}: kubectl label node NAME {RESTRICTED}/kind=external "
        f"{RESTRICTED}/site={site}\n{rest}"
    )


def controller_options(text: str, *, evict: bool, reservation: str) -> str:
    """rbac.yaml or controller.yaml with the rights for options of the bridge, and with the options.

    Raises Refused for a reservation that is no name.
    """
    options: list[str] = []
    rights = ""
    if evict:
        options.append("--evict-stale-pods")
        rights += _right("", "pods", "list") + _right("", "pods/eviction", "create")
    if reservation:
        options.append(f"--apiserver-backends={check_label(reservation, 'reservation')}")
        rights += _right("discovery.k8s.io", "endpointslices", "list")
    events = _right("events.k8s.io", "events", "create, patch")
    if events in text:
        return text.replace(events, events + rights)
    flag = "            - --kubernetes\n"
    return _replaced(text, flag, flag + "".join(f"            - {option}\n" for option in options))


def _right(group: str, resource: str, verbs: str) -> str:
    named = group or '""'
    return f"  - apiGroups: [{named}]\n    resources: [{resource}]\n    verbs: [{verbs}]\n"


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise AssertionError(f"the manifest has no {old!r}")
    return text.replace(old, new)
