"""A Kubernetes Node as flannel (or another allocator) has left it → a candidate of an adoption. Pure.

Each candidate carries everything that is wrong with it; nothing is raised for what is in an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane.cluster.decisions.given_range import Finding
from controlplane.cluster.decisions.nodes import UID_LIMIT
from controlplane.kubernetes.node_objects import Rules, read_node
from controlplane.kubernetes.objects import FLANNEL
from events.protocol.commands import AdoptedNode

KERNEL_MIN = (5, 2)
"""The first with masquerading in a table of the inet family."""
KERNEL_RENAMES = (6, 2)
"""The first that renames a device that is up."""
_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,4})")


class Candidate(msgspec.Struct, kw_only=True):
    """A node as the present network knows it. ``vni`` and ``port`` are None where nothing says them."""

    node: str
    uid: str = ""
    kind: str = ""
    site: str = ""
    underlay: str = ""
    announced: str = ""
    range: str = ""
    mac: str = ""
    vni: int | None = None
    port: int | None = None
    backend: str = ""
    addresses: tuple[str, ...] = ()
    kernel: str = ""
    attached_by_calico: bool = False
    findings: list[Finding] = []

    def found(self, code: str, message: str) -> None:
        """Note what is wrong with it."""
        self.findings.append(Finding(code, message))


def read_candidate(item: Mapping[str, Any], number: int, rules: Rules) -> Candidate:
    """What one Node object says; never raises for what is in it. ``number`` names one without a name."""
    read = read_node(item, rules)
    metadata, spec, status = (as_dict(item.get(part)) for part in ("metadata", "spec", "status"))
    fields = read.fields
    found = Candidate(
        node=fields.get("node", "") or f"item {number}",
        uid=fields.get("uid", ""),
        kind=fields.get("kind", ""),
        site=fields.get("site", ""),
        underlay=fields.get("underlay", ""),
        announced=fields.get("announced", ""),
        range=ranges_text(spec),
        addresses=tuple(
            str(entry["address"])
            for entry in as_list(status.get("addresses"))
            if isinstance(entry, dict) and isinstance(entry.get("address"), str)
        ),
        kernel=as_text(as_dict(status.get("nodeInfo")).get("kernelVersion")),
        findings=[],
    )
    annotations = as_dict(metadata.get("annotations"))
    public = as_text(annotations.get(f"{FLANNEL}/public-ip-overwrite")) or as_text(
        annotations.get(f"{FLANNEL}/public-ip")
    )
    flannel = {key: value for key, value in annotations.items() if str(key).startswith(f"{FLANNEL}/")}
    problems = read.problems
    if public:
        if public in found.addresses or not found.underlay:
            # flannel's own word for where the node is settles which of several addresses it is.
            problems = tuple(
                p for p in problems if found.underlay or ("address" not in p and "InternalIP" not in p)
            )
            found.underlay, found.announced = public, ""
        elif public != found.underlay:
            found.announced = public
    found.attached_by_calico = bool(flannel) and "projectcalico.org/IPv4Address" in annotations
    for problem in problems:
        found.found("adopt_node_unreadable", problem)
    if flannel:
        _annotations(found, annotations)
    return found


def _annotations(found: Candidate, annotations: Mapping[str, Any]) -> None:
    """What flannel says on a Node; ``backend-data`` of releases before 0.12 has no VNI."""
    found.backend = as_text(annotations.get(f"{FLANNEL}/backend-type"))
    wanted = [key for key in ("backend-type", "public-ip") if not as_text(annotations.get(f"{FLANNEL}/{key}"))]
    data = as_text(annotations.get(f"{FLANNEL}/backend-data"))
    if found.backend in {"", "vxlan"}:
        if not data or data == "null":
            wanted.append("backend-data")
        else:
            try:
                read = json.loads(data)
            except (ValueError, RecursionError):
                read = None
            if isinstance(read, dict):
                backend_data(found, read)
            else:
                found.found(
                    "adopt_annotation_unreadable", f"its annotation {FLANNEL}/backend-data is {data[:80]!r}"
                )
    if wanted:
        found.found(
            "adopt_annotation_missing",
            f"it lacks flannel's {' and '.join(wanted)} ({FLANNEL}/…): is flannel running on it?",
        )


def backend_data(found: Candidate, data: Any) -> None:
    """Note what flannel's vxlan backend says of its device."""
    data = as_dict(data)
    mac, vni, port = data.get("VtepMAC"), data.get("VNI"), data.get("Port")
    found.mac = mac.lower() if isinstance(mac, str) else ""
    if vni is not None:  # what is no number is no VNI that another node could have
        found.vni = vni if type(vni) is int else -1
    found.port = port if type(port) is int and port else None


def kernel_problem(release: str, *, keep_name: bool) -> str:
    """Why a kernel of this release (``uname -r``) is too old, in words; empty when it is not, or is unknown."""
    found = _RELEASE.match(release)
    if found is None:
        return ""
    version = int(found[1]), int(found[2])
    if version < KERNEL_MIN:
        return f"its kernel is Linux {release[:64]}; Isthmus needs {_dotted(KERNEL_MIN)} and later"
    if version < KERNEL_RENAMES and not keep_name:
        return (
            f"its kernel is Linux {release[:64]}, which renames no device that is up "
            f"({_dotted(KERNEL_RENAMES)} and later do): plan with --keep-name, and every device keeps its name"
        )
    return ""


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def judge(found: Candidate, *, keep_name: bool) -> None:
    """Note why flannel's device on the node cannot be taken over. ``keep_name``: it need not be renamed."""
    problem = kernel_problem(found.kernel, keep_name=keep_name)
    if problem:
        found.found("adopt_kernel_old", problem)
    if found.backend in {"lease", "plan"}:
        return  # judged when it was read
    if not found.backend and not any(each.code == "adopt_annotation_missing" for each in found.findings):
        found.found(
            "adopt_annotation_missing", "it has none of flannel's annotations: is flannel running on it?"
        )
    elif found.backend not in {"", "vxlan"}:
        found.found(
            "adopt_backend", f"flannel's backend on it is {found.backend[:64]!r}; vxlan can be taken over"
        )


def adopted(found: Candidate, mac: str) -> AdoptedNode:
    """The node as a decision is asked for it; whatever is wrong with it, the decision says, too."""
    return AdoptedNode(
        node=found.node,
        uid=found.uid[:UID_LIMIT],
        kind="external" if found.kind == "external" else "cloud",
        underlay=found.underlay,
        announced=found.announced,
        site=found.site,
        range=found.range,
        vtep_mac=mac,
    )


def ranges_text(spec: Mapping[str, Any]) -> str:
    """The ranges of a Node's spec as one text: several are not lost."""
    several = [as_text(each) for each in as_list(spec.get("podCIDRs")) if as_text(each)]
    return ",".join(dict.fromkeys(several)) or as_text(spec.get("podCIDR"))


def as_dict(value: Any) -> dict[str, Any]:
    """The object, or an empty one where there is none."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The list, or an empty one where there is none."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """The text without blanks around it, empty where there is none."""
    return value.strip() if isinstance(value, str) else ""
