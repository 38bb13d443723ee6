"""A Node and the member of its name → what is to be written to the Node. Pure: no clock, no API server.

The rules are a table; each row has a test:

======================================  =========================  ======================================
member                                  Node's podCIDR             written
======================================  =========================  ======================================
none (never, refused, removed)          any                        True, IsthmusNoRange
range, agent not ready or never heard   none                       podCIDR; True, IsthmusAgentNotReady
range, agent ready                      none or the range          podCIDR; False, IsthmusIsUp; taint away
range, agent silent after being ready   the range                  nothing: the data path goes on
range                                   another one                True, IsthmusRangeConflict, Event
that of another machine                 any                        True, IsthmusRangeConflict, Event
in adoption, agent never heard or gone  any                        nothing: another network serves it
none, in adoption, nothing refused      any                        nothing: it may be flannel's
none, annotations of flannel, not ours  any                        nothing: flannel serves it
======================================  =========================  ======================================

A recorded refusal (``uid_in_use``: the node was renamed) and a ``maxPods`` above the range's addresses become
Events, too. A podCIDR is never changed once set (the API refuses it) and never taken over from
somebody else: two Nodes with one podCIDR are accepted by the API server, so the member whose range it is
decides which is right.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Literal

import msgspec

from controlplane.kubernetes.objects import EPOCH, RANGE, STARTUP_TAINT, UID, Node, Reason, flannel_facts
from events.machine_identity import machine_uid

RESERVED = 3
"""Addresses of a range that no pod gets."""

Agent = Literal["ready", "not ready", "silent", "never heard"]
"""What is known of a member's agent: its last report, and whether it still reports."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """What the log and the agents say of the member with a Node's name.

    ``cidr`` is empty for one without a range; ``complaint`` is what the agent says, in words; ``node_uid`` is
    the UID of the Node that the log says it is, empty while none is recorded. ``stray_ranges`` are former
    ranges of which pods on it still have addresses (``stray_pods``: some of them), as its agent says.
    """

    uid: str
    cidr: str
    epoch: int
    agent: Agent
    complaint: str = ""
    node_uid: str = ""
    stray_ranges: tuple[str, ...] = ()
    stray_pods: tuple[str, ...] = ()
    elsewhere: bool = False
    """Its pods are served by the network that is being adopted: what that says of it is followed, and nothing
    is said about it here."""
    flannel: tuple[tuple[str, str], ...] = ()
    """Flannel's annotations, by which nodes that are still on flannel find this one; empty: none is left."""


class Condition(msgspec.Struct, frozen=True):
    """What NetworkUnavailable is to say."""

    status: Literal["True", "False"]
    reason: Reason
    message: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written; None and False: nothing of that kind. ``warning`` becomes a Kubernetes Event.

    ``about`` is that Event's reason; without a warning it says nothing.
    """

    pod_cidr: str = ""
    annotate: bool = False
    condition: Condition | None = None
    untaint: bool = False
    warning: str = ""
    about: Literal["IsthmusRangeConflict", "IsthmusNoRange", "IsthmusMaxPods"] = "IsthmusRangeConflict"

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Wanted()


def wanted(
    node: Node, member: Member | None, *, refusal: str = "", taken_by: str = "", adopting: bool = False
) -> Wanted:
    """What to write to ``node``. ``adopting``: another network may serve Nodes that are no members.

    ``refusal`` is the recorded reason why the node has no range; ``taken_by`` the member that owns the range
    which the Node has as its podCIDR, when that is another one.
    """
    found = node.spec.pod_cidr
    if member is not None and member.elsewhere:
        return NOTHING
    if member is None and (_of_flannel(node, adopting=adopting) or (adopting and not refusal)):
        return NOTHING
    if member is None or not member.cidr:
        message = f"{node.name} has no range: " + (
            refusal or "no agent has joined by this name; look with `isthmus agent status` on the node"
        )
        return Wanted(
            condition=_changed(node, Condition("True", "IsthmusNoRange", message)),
            warning=message if refusal else "",
            about="IsthmusNoRange" if refusal else "IsthmusRangeConflict",
        )
    if not same_machine(node, member):
        message = (
            f"the Node is machine {node.machine}, the member {node.name} is machine {member.uid}: start the "
            f"agent on the new machine; if the old one is gone for good: `isthmus node fence {node.name} --yes`"
        )
        return Wanted(
            condition=_changed(node, Condition("True", "IsthmusRangeConflict", message)), warning=message
        )
    if found not in {"", member.cidr}:
        owner = f", which is the range of {taken_by}" if taken_by else ""
        message = (
            f"the Node has podCIDR {found}{owner}; its range is {member.cidr}. A podCIDR cannot be changed: "
            f"drain the node, `kubectl delete node {node.name}`, restart its kubelet; if "
            f"kube-controller-manager gave it, run that with --allocate-node-cidrs=false"
        )
        return Wanted(
            annotate=_stale(node, member),
            condition=_changed(node, Condition("True", "IsthmusRangeConflict", message)),
            warning=message,
        )
    pod_cidr = member.cidr if not found else ""
    if member.agent == "silent":
        # Its packets may well be flowing: what was said stands, and only what is missing is filled in.
        return Wanted(pod_cidr=pod_cidr, annotate=_stale(node, member))
    if member.agent != "ready":
        why = member.complaint or (
            "its agent has not reported yet" if member.agent == "never heard" else "it says so"
        )
        condition = Condition(
            "True", "IsthmusAgentNotReady", f"{node.name} has {member.cidr}; not ready: {why}"
        )
        return Wanted(pod_cidr=pod_cidr, annotate=_stale(node, member), condition=_changed(node, condition))
    crowded = _too_many_pods(node, member)
    return Wanted(
        pod_cidr=pod_cidr,
        annotate=_stale(node, member),
        condition=_changed(node, Condition("False", "IsthmusIsUp", f"pods have {member.cidr}")),
        untaint=any(taint.key == STARTUP_TAINT for taint in node.spec.taints),
        warning=crowded,
        about="IsthmusMaxPods" if crowded else "IsthmusRangeConflict",
    )


def _of_flannel(node: Node, *, adopting: bool) -> bool:
    """Whether flannel serves a Node that is no member; outside of an adoption, one that never was a member."""
    said = node.metadata.annotations
    return flannel_facts(said) is not None and (adopting or RANGE not in said)


def left_to_flannel(node: Node, member: Member | None) -> bool:
    """Whether flannel serves the Node, and the log does not say so, or says something else of it."""
    facts = flannel_facts(node.metadata.annotations)
    if facts is None or not node.spec.pod_cidr:
        return False
    if member is None:
        return True
    return member.elsewhere and (
        facts != flannel_facts(dict(member.flannel)) or node.spec.pod_cidr != member.cidr
    )


def same_machine(node: Node, member: Member) -> bool:
    """Whether the Node can be the member; not when both name their machines, and these differ."""
    return not node.machine or machine_uid(member.uid) != member.uid or node.machine == member.uid


def _too_many_pods(node: Node, member: Member) -> str:
    usable = IPv4Network(member.cidr).num_addresses - RESERVED
    if node.pods_max <= usable:
        return ""
    return (
        f"the kubelet's maxPods is {node.pods_max}, its range {member.cidr} has {usable} addresses for pods: "
        f"the scheduler goes on sending pods that fail with FailedCreatePodSandBox; set maxPods to {usable}"
    )


def _stale(node: Node, member: Member) -> bool:
    """Whether the annotations say anything else than the log."""
    said = node.metadata.annotations
    ours = {RANGE: member.cidr, EPOCH: str(member.epoch), UID: member.uid, **dict(member.flannel)}
    return any(said.get(key) != value for key, value in ours.items())


def _changed(node: Node, condition: Condition) -> Condition | None:
    """The condition, unless the Node says exactly that (a cloud's route controller may overwrite it)."""
    found = node.network
    if found is not None and (found.status, found.reason, found.message) == (
        condition.status,
        condition.reason,
        condition.message,
    ):
        return None
    return condition
