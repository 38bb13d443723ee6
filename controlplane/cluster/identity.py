"""Two machines with one name or one identity: which keeps its place, and what the other is told. Pure."""

from __future__ import annotations

from controlplane.cluster.decision import DecisionContext
from controlplane.cluster.state import Node
from events.errors import Refused


def living(member: Node, uid: str, context: DecisionContext) -> Refused | None:
    """Why another uid cannot take the member's name: its agent reports."""
    silent_s = context.members.silent_s(member.uid)
    if silent_s is None:
        return None
    return Refused(
        "node_alive",
        f"node {member.name!r} is a member with uid {member.uid!r}, heard {silent_s:.0f} s ago: uid {uid!r} "
        f"does not take its place while it reports. If both are one machine, give it one uid; if "
        f"the new one is to replace it, stop the old agent, or: isthmus node fence {member.name} --yes",
        node=member.name,
        uid=uid,
        live_uid=member.uid,
        silent_s=round(silent_s, 1),
    )


def other_machine(member: Node, underlay: str, context: DecisionContext) -> Refused | None:
    """Why another machine with the member's identity does not move it: the member reports from its place.

    Not recorded: a machine that has moved across a restart is let in once its predecessor is silent.
    """
    process = context.members.process_of(member.uid)
    if not context.instance or process is None or process.instance == context.instance:
        return None
    if process.underlay != member.underlay or underlay == member.underlay:
        return None
    return Refused(
        "identity_twice",
        f"node {member.name!r} (uid {member.uid!r}) reports from {process.underlay}, "
        f"heard {process.silent_s:.0f} s ago, and another agent with this identity "
        f"asks from {underlay}: the node stays where it is. If "
        f"{underlay} is a copy of that machine, stop its agent, give it an identity of its own "
        f"(isthmus agent new-identity --yes), and start it; if it is the same machine, it is let in when the "
        f"other agent is silent",
        node=member.name,
        uid=member.uid,
        underlay=process.underlay,
        other=underlay,
    )


def another_process(member: Node, context: DecisionContext, way_out: str) -> Refused | None:
    """Why a machine does not speak for the member: another process with this identity reports.

    ``way_out`` is what to do if it is not a copy.
    """
    process = context.members.process_of(member.uid)
    if not context.instance or process is None or process.instance == context.instance:
        return None
    return Refused(
        "identity_twice",
        f"node {member.name!r} (uid {member.uid!r}) reports from {process.underlay}, heard "
        f"{process.silent_s:.0f} s ago, and this machine has no such address: the node stays. If this is a "
        f"copy of that machine, give it an identity of its own (isthmus agent new-identity --yes); {way_out}",
        node=member.name,
        uid=member.uid,
        underlay=process.underlay,
    )
