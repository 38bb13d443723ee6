"""Variants of the manifests: the agents of external nodes, the controller's options, and values.

Kind and site of a node are for good. They come from labels that a kubelet cannot give itself (the API
server's admission refuses it), and each site has a DaemonSet, because agents cannot read labels.

The manifests are changed as text, so that what people read keeps its comments; a place that is not there
any more is a defect, not a value that is passed over.
"""

from __future__ import annotations

import re

import msgspec

from deploy.kubernetes.values import Resources, Values
from events.subjects import check_label

RESTRICTED = "isthmus.node-restriction.kubernetes.io"
_KIND = f"- {{key: {RESTRICTED}/kind, operator: NotIn, values: [external]}}"
_TOLERATIONS = "      tolerations:\n        - operator: Exists\n"
_OS = "        kubernetes.io/os: linux\n"
_AGENT_ARG = "            - --ca=/etc/isthmus/ca.pem\n"
_DEFAULT = Values()


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
        (_AGENT_ARG, f"{_AGENT_ARG}            - --kind=external\n            - --site={site}\n"),
    )
    for old, new in changes:
        agent = replaced(agent, old, new)
    _, _, rest = agent.partition("\n")
    return (
        f"# The agent of external nodes of the site {site}: kubectl label node NAME {RESTRICTED}/kind=external "
        f"{RESTRICTED}/site={site}\n{rest}"
    )


def controller_options(text: str, *, evict: bool, reservation: str, services: bool) -> str:
    """rbac.yaml with the rights for options of the bridge, or with the options what runs it: the manifest of a
    controller, or of a bridge beside it.

    Raises Refused for a reservation that is no name.
    """
    options: list[str] = []
    rights = ""
    if evict:
        options.append("--evict-stale-pods")
        rights += right("", "pods", "list") + right("", "pods/eviction", "create")
    if reservation:
        options.append(f"--apiserver-backends={check_label(reservation, 'reservation')}")
    if services:
        options.append("--service-backends")
        rights += right("", "services", "list")
    if reservation or services:
        rights += right("discovery.k8s.io", "endpointslices", "list")
    events = right("events.k8s.io", "events", "create, patch")
    if events in text:
        return text.replace(events, events + rights)
    flag = "            - controller\n            - --kubernetes\n"
    if flag not in text:
        flag = "            - kubernetes\n"
    return replaced(text, flag, flag + "".join(f"            - {option}\n" for option in options))


def without_bridge(text: str) -> str:
    """The manifest of a controller beside which a bridge runs: it has no access to the API server."""
    text = replaced(text, "            - --kubernetes\n", "")
    said = "      # It keeps Nodes in step (--kubernetes): podCIDR, NetworkUnavailable; see rbac.yaml.\n"
    mount = "      automountServiceAccountToken: "
    return replaced(text, f"{said}{mount}true\n", f"{mount}false\n")


def valued_agent(text: str, values: Values) -> str:
    """A DaemonSet of agents with the values that concern it."""
    text = valued(text, values)
    options = ["--accept-in-others"] if values.accept_in_others else []
    options += [
        f"--{name}={value}"
        for name, value, default in (
            ("mtu", values.mtu, _DEFAULT.mtu), ("underlay", values.underlay, _DEFAULT.underlay),
            ("cni-plugin", values.cni_plugin, _DEFAULT.cni_plugin),
            ("fastpath", values.fastpath, _DEFAULT.fastpath),
            ("direct", values.direct, _DEFAULT.direct), ("nat", values.nat, _DEFAULT.nat),
        )
        if value != default
    ]  # fmt: skip
    text = replaced(text, _AGENT_ARG, _AGENT_ARG + "".join(f"            - {option}\n" for option in options))
    if values.tolerations != _DEFAULT.tolerations:
        said = msgspec.json.encode(values.tolerations).decode()
        text = replaced(text, _TOLERATIONS, f"      tolerations: {said}\n")
    for key, value in values.node_selector.items():
        text = replaced(text, _OS, f"{_OS}        {_quoted(key)}: {_quoted(value)}\n")
    for old, new in (
        ("{path: /opt/cni/bin, ", f"{{path: {values.cni_bin_dir}, "),
        ("{path: /etc/cni/net.d, ", f"{{path: {values.cni_conf_dir}, "),
    ):
        text = replaced(text, old, new)
    return resourced(text, "agent", values.resources.agent)


def valued_controller(text: str, values: Values) -> str:
    """A workload with a controller, with the values that concern it."""
    text = valued(text, values)
    if values.bridge == "controller":
        text = _fencing(text, values)
    return resourced(text, "controller", values.resources.controller)


def valued_bridge(text: str, values: Values) -> str:
    """The workload of bridges beside the controllers, with the values that concern it."""
    return resourced(_fencing(valued(text, values), values), "bridge", values.resources.bridge)


def _fencing(text: str, values: Values) -> str:
    if not values.fence_deleted_s:
        return text
    name = "            - --name="
    return replaced(text, name, f"            - --fence-deleted={values.fence_deleted_s:g}\n{name}")


def valued(text: str, values: Values) -> str:
    """Any workload with the image, and with what pulls it."""
    image = f"image: {values.image.name}\n"
    pull = values.image.pull_policy
    text = re.sub(
        r"^( +)((?:- )?)image: isthmus\n",
        lambda m: f"{m[1]}{m[2]}{image}{m[1]}{' ' * len(m[2])}imagePullPolicy: {pull}\n",
        text,
        flags=re.MULTILINE,
    )
    if values.image_pull_secrets:
        secrets = msgspec.json.encode([{"name": name} for name in values.image_pull_secrets]).decode()
        account = "      serviceAccountName:"
        text = replaced(text, account, f"      imagePullSecrets: {secrets}\n{account}")
    return text


def resourced(text: str, container: str, wanted: Resources) -> str:
    """With the resources of a container, as far as values say them; the others stay as they are shipped."""
    pattern = re.compile(
        rf"(\n        - name: {container}\n(?:.*\n)*?          resources:\n)"
        r"            requests: (\{.*\})\n            limits: (\{.*\})\n"
    )
    found = pattern.search(text)
    if found is None:
        raise AssertionError(f"the manifest has no resources of {container!r}")
    lines = ""
    for what, shipped, said in (
        ("requests", found[2], wanted.requests), ("limits", found[3], wanted.limits),
    ):  # fmt: skip
        quantities = dict(re.findall(r"(\w+): ([\w.]+)", shipped))
        quantities |= {name: value for name, value in (("cpu", said.cpu), ("memory", said.memory)) if value}
        inner = ", ".join(f"{name}: {_quoted(value) if not shipped_as(value) else value}"
                          for name, value in quantities.items())  # fmt: skip
        lines += f"            {what}: {{{inner}}}\n"
    return text[: found.start()] + found[1] + lines + text[found.end() :]


def shipped_as(value: str) -> bool:
    """Whether a quantity can stand without quotes: it is no number, which YAML would make one of."""
    return re.fullmatch(r"[0-9.]+[A-Za-z]+", value) is not None


def right(group: str, resource: str, verbs: str) -> str:
    """One rule of a role."""
    named = group or '""'
    return f"  - apiGroups: [{named}]\n    resources: [{resource}]\n    verbs: [{verbs}]\n"


def replaced(text: str, old: str, new: str) -> str:
    """``text`` with every ``old`` replaced; that there is one is a rule of the manifests."""
    if old not in text:
        raise AssertionError(f"the manifest has no {old!r}")
    return text.replace(old, new)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
