"""Pods that still have an address of a range which is not their Node's any more. Shapes and rules; no I/O.

Such pods are left over when a machine leaves and joins again: a new range cannot reach the old addresses, and
a DaemonSet's pods survive the drain that would have ended them. Evicted, they come back with new addresses.
Sources: ``core/v1 Pod`` and ``policy/v1 Eviction`` of Kubernetes 1.36.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec

from controlplane.kubernetes.desired import Member
from controlplane.kubernetes.objects import ListMeta

MIRROR = "kubernetes.io/config.mirror"
"""The kubelet's mark of a static pod: evicting its image in the API ends nothing on the machine."""
NAMED = 5
"""Most addresses that an Event names."""


class PodMeta(msgspec.Struct, frozen=True, rename="camel"):
    """``metadata`` of a pod."""

    name: str
    namespace: str
    uid: str = ""
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """``spec`` of a pod."""

    host_network: bool = False


class PodStatus(msgspec.Struct, frozen=True, rename={"pod_ip": "podIP"}):
    """``status`` of a pod. ``pod_ip`` is empty until it has one."""

    phase: str = ""
    pod_ip: str = ""


class Pod(msgspec.Struct, frozen=True):
    """As much of a pod as is looked at."""

    metadata: PodMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class PodList(msgspec.Struct, frozen=True):
    """One page of pods."""

    metadata: ListMeta
    items: tuple[Pod, ...] = ()


def stale(pods: Iterable[Pod], member: Member) -> list[Pod]:
    """Those that run with an address of the member's former ranges, and not of the one that it has.

    The agent says which ranges these are: it has seen the interfaces. What is ending already, has ended, is
    static or uses the host's network is left out.
    """
    former = [IPv4Network(cidr) for cidr in member.stray_ranges]
    own = IPv4Network(member.cidr)
    found = []
    for pod in pods:
        meta, status = pod.metadata, pod.status
        if pod.spec.host_network or meta.deletion_timestamp or MIRROR in meta.annotations:
            continue
        if status.phase in {"Succeeded", "Failed"}:
            continue
        try:
            address = IPv4Address(status.pod_ip)
        except ValueError:  # none yet, or an IPv6 address
            continue
        if address not in own and any(address in network for network in former):
            found.append(pod)
    return found


def eviction(pod: Pod) -> dict[str, Any]:
    """The eviction of exactly this pod; a successor of its name has another uid (409)."""
    meta = pod.metadata
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": meta.name, "namespace": meta.namespace},
        "deleteOptions": {"preconditions": {"uid": meta.uid}},
    }


def stale_pods_text(node: str, member: Member, *, evicting: bool) -> str:
    """What an Event says of them, with the way out."""
    some = ", ".join(member.stray_pods[:NAMED]) or ", ".join(member.stray_ranges)
    way_out = (
        "they are evicted, as disruption budgets allow"
        if evicting
        else f"`kubectl get pods -A -o wide --field-selector spec.nodeName={node}` names them; delete them, or "
        "run the controller with --evict-stale-pods"
    )
    return (
        f"pods of an earlier range run on {node} ({some}); its range is {member.cidr}, so that nobody reaches "
        f"them: {way_out}"
    )
