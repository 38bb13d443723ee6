"""What is read of a Kubernetes Node, and what is written to it. Shapes of the API, nothing decided.

Sources: ``core/v1 Node`` and ``events.k8s.io/v1 Event`` of Kubernetes 1.36.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from events.machine_identity import machine_uid

PREFIX = "isthmus.io/"
"""Of annotations and of the start-up taint."""

RANGE = f"{PREFIX}range"
EPOCH = f"{PREFIX}epoch"
UID = f"{PREFIX}uid"
"""Annotations that are written for people, and never read."""
STARTUP_TAINT = f"{PREFIX}agent-not-ready"
CLB = f"{PREFIX}public-services"
"""Annotation of a Service: the CLB reservation whose second address it is reached by."""

CONDITION = "NetworkUnavailable"
Reason = Literal["IsthmusIsUp", "IsthmusNoRange", "IsthmusAgentNotReady", "IsthmusRangeConflict"]


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """``metadata``. ``uid`` is this object's: a Node of the same name made anew has another."""

    name: str
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None


class Taint(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A taint of ``spec.taints``."""

    key: str
    effect: str = ""
    value: str = ""
    time_added: str | None = None


class Spec(msgspec.Struct, frozen=True, rename={"pod_cidr": "podCIDR", "pod_cidrs": "podCIDRs"}):
    """``spec``."""

    pod_cidr: str = ""
    pod_cidrs: tuple[str, ...] = ()
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """One of ``status.conditions``."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class NodeInfo(msgspec.Struct, frozen=True, rename={"machine_id": "machineID", "system_uuid": "systemUUID"}):
    """``status.nodeInfo``: which machine the kubelet runs on."""

    machine_id: str = ""
    system_uuid: str = ""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """``status``. ``capacity`` holds quantities as text."""

    conditions: tuple[Condition, ...] = ()
    node_info: NodeInfo = NodeInfo()
    capacity: dict[str, str] = {}


class Node(msgspec.Struct, frozen=True):
    """As much of a Node as is looked at; everything else is passed over when decoding."""

    metadata: Meta
    spec: Spec = Spec()
    status: Status = Status()

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def network(self) -> Condition | None:
        """The condition NetworkUnavailable, if the Node has it."""
        return next((found for found in self.status.conditions if found.type == CONDITION), None)

    @property
    def machine(self) -> str:
        """The uid of its machine, as the agent there derives it; empty when nothing names the machine."""
        return machine_uid(self.status.node_info.machine_id, self.status.node_info.system_uuid)

    @property
    def pods_max(self) -> int:
        """The kubelet's maxPods; 0 when the Node does not say it."""
        said = self.status.capacity.get("pods", "")
        return int(said) if said.isascii() and said.isdecimal() else 0

    @property
    def looked_at(self) -> tuple[object, ...]:
        """All that the bridge's writing depends on: a heartbeat changes none of it."""
        meta = self.metadata
        return self.spec, self.network, meta.uid, meta.annotations, self.machine, self.pods_max


class ListMeta(msgspec.Struct, frozen=True, rename={"resource_version": "resourceVersion", "next": "continue"}):
    """``metadata`` of a list; ``next`` asks for its next page."""

    resource_version: str = ""
    next: str = ""


class NodeList(msgspec.Struct, frozen=True):
    """One page of Nodes."""

    metadata: ListMeta
    items: tuple[Node, ...] = ()


class ObjectList(msgspec.Struct, frozen=True):
    """One page of objects of any kind, whole."""

    metadata: ListMeta
    items: tuple[dict[str, Any], ...] = ()


class SlicePort(msgspec.Struct, frozen=True):
    """One of ``ports`` of an EndpointSlice."""

    name: str = ""
    port: int | None = None


class Readiness(msgspec.Struct, frozen=True):
    """``conditions`` of an endpoint; None: not known, which counts as ready."""

    ready: bool | None = None


class SliceEndpoint(msgspec.Struct, frozen=True, rename="camel"):
    """One of ``endpoints`` of an EndpointSlice."""

    addresses: tuple[str, ...] = ()
    conditions: Readiness = Readiness()
    node_name: str = ""


class EndpointSlice(msgspec.Struct, frozen=True, rename="camel"):
    """Where a Service is served, or a part of it."""

    address_type: str
    endpoints: tuple[SliceEndpoint, ...] | None = ()
    ports: tuple[SlicePort, ...] | None = ()


class EndpointSliceList(msgspec.Struct, frozen=True):
    """One page of EndpointSlices."""

    metadata: ListMeta
    items: tuple[EndpointSlice, ...] = ()


class ServiceMeta(msgspec.Struct, frozen=True, rename="camel"):
    """``metadata`` of a Service."""

    name: str
    namespace: str
    uid: str = ""
    creation_timestamp: str = ""
    annotations: dict[str, str] = {}


class ServicePort(msgspec.Struct, frozen=True, rename="camel"):
    """One of ``spec.ports``; ``node_port`` is 0 for a Service that has none."""

    port: int
    protocol: str = "TCP"
    node_port: int = 0


class ServiceSpec(msgspec.Struct, frozen=True, rename="camel"):
    """``spec`` of a Service."""

    ports: tuple[ServicePort, ...] | None = ()
    session_affinity: str = ""
    health_check_node_port: int = 0


class Service(msgspec.Struct, frozen=True):
    """As much of a Service as is looked at."""

    metadata: ServiceMeta
    spec: ServiceSpec = ServiceSpec()


class ServiceList(msgspec.Struct, frozen=True):
    """One page of Services."""

    metadata: ListMeta
    items: tuple[Service, ...] = ()


class WatchLine(msgspec.Struct, frozen=True):
    """One line of a watch; its object is decoded by its type."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class Failure(msgspec.Struct, frozen=True):
    """A ``Status`` object that says why something was refused."""

    code: int = 0
    reason: str = ""
    message: str = ""


def pod_cidr_patch(node: Node, cidr: str) -> dict[str, Any]:
    """A merge patch (a strategic one would append to podCIDRs); the uid is a precondition (stale: 422)."""
    return {"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}


def annotations_patch(
    node: Node, cidr: str, epoch: int, uid: str, others: Iterable[tuple[str, str]] = ()
) -> dict[str, Any]:
    """What the log says of the member, for people who look at the Node; ``others`` are another network's."""
    said = {RANGE: cidr, EPOCH: str(epoch), UID: uid, **dict(others)}
    return {"metadata": {"uid": node.metadata.uid, "annotations": said}}


FLANNEL = "flannel.alpha.coreos.com"


def flannel_annotations(vni: int, mac: str, address: str) -> tuple[tuple[str, str], ...]:
    """What flannel's daemons look for on a Node to write their rows towards it."""
    return (
        (f"{FLANNEL}/backend-data", f'{{"VNI":{vni},"VtepMAC":"{mac}"}}'),
        (f"{FLANNEL}/backend-type", "vxlan"),
        (f"{FLANNEL}/kube-subnet-manager", "true"),
        (f"{FLANNEL}/public-ip", address),
    )


def flannel_facts(annotations: Mapping[str, str]) -> tuple[str, str] | None:
    """VTEP MAC and address that flannel has written to a Node; None: flannel's vxlan backend is not there."""
    try:
        data = msgspec.json.decode(annotations.get(f"{FLANNEL}/backend-data", ""), type=dict[str, Any])
    except msgspec.MsgspecError:
        return None
    mac, address = data.get("VtepMAC"), annotations.get(f"{FLANNEL}/public-ip", "")
    if not isinstance(mac, str) or annotations.get(f"{FLANNEL}/backend-type") != "vxlan":
        return None
    return mac.lower(), annotations.get(f"{FLANNEL}/public-ip-overwrite", "") or address


def untaint_patch(node: Node) -> dict[str, Any]:
    """Without the start-up taint. Taints are a list, so the version is a precondition, too (stale: 409)."""
    kept = [msgspec.to_builtins(taint) for taint in node.spec.taints if taint.key != STARTUP_TAINT]
    return {
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"taints": kept or None},
    }


def condition_patch(
    node: Node, status: Literal["True", "False"], reason: Reason, message: str, now: str
) -> dict[str, Any]:
    """The one condition, by strategic merge on ``status``: others' conditions stay. ``now`` is RFC 3339."""
    return {
        "metadata": {"uid": node.metadata.uid},
        "status": {
            "conditions": [
                {
                    "type": CONDITION,
                    "status": status,
                    "reason": reason,
                    "message": message,
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ]
        },
    }


def event(
    node: Node, *, name: str, reason: str, action: str, note: str, instance: str, now: str
) -> dict[str, Any]:
    """A warning about a Node, where ``kubectl describe node`` finds it; ``note`` up to 1,024 bytes."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "eventTime": now,
        "reportingController": "isthmus.io/controller",
        "reportingInstance": instance[:128],
        "action": action,
        "reason": reason,
        # kubectl finds a Node's events by its name as the uid, as the kubelet writes them.
        "regarding": {"kind": "Node", "name": node.name, "uid": node.name},
        "note": note.encode()[:1024].decode(errors="ignore"),
        "type": "Warning",
    }
