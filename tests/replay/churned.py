"""The recorded node churn as a log: the real ``decide``, with the recording's own times.

The recordings are of August 2023; a drain is confirmed one tick (300 s) after its leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from controlplane.cluster.decide import AdvanceDrains, decide
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from deploy.churn.trace import changes, find_files, load
from events.chain import genesis
from events.codec import Cause, StoredMessage, seal
from events.protocol.commands import Command, DefineCluster, JoinNode, LeaveNode
from events.types import Event
from replay.archive.writer import ArchiveWriter

CLUSTER = "churn"
DATA = Path(__file__).resolve().parents[1] / "data" / "node-churn"
BEGIN = datetime(2023, 8, 1, tzinfo=UTC)


def recorded_changes() -> list[tuple[float, bool, str, str, str, str, str]]:
    """All joins and leaves of the six recordings: seconds, joins?, name, uid, kind, site, underlay."""
    found = []
    traces = load(find_files([DATA]))
    for change in changes(traces, run="1", order="longest-lived", seed=1):
        i = change.instance
        found.append((change.at_s, change.joins, i.name, i.uid, str(i.kind), i.site, i.underlay))
    return found


def churn_history() -> list[StoredMessage]:
    """The whole churn as stored messages: 10.200.0.0/16, 64 addresses a node."""
    state, head, now = ClusterState(CLUSTER), genesis(CLUSTER), BEGIN
    messages: list[StoredMessage] = []
    number = 0

    def store(events: Sequence[Event], actor: str) -> None:
        nonlocal head, number
        if not events:
            return
        number += 1
        cause = Cause(command_id=f"churn-{number}", actor=actor, time=now, source="controller/churn")
        sealed, after = seal(CLUSTER, head, [(cause, events)])
        stamp = (now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000 + 900_000
        for offset, (message, event) in enumerate(zip(sealed, events, strict=True), 1):
            sequence = head.sequence + offset
            evolve(state, sequence, event)
            messages.append(StoredMessage(sequence, message.subject, message.headers, message.body, stamp))
        head = after

    def do(command: Command | AdvanceDrains, actor: str) -> None:
        decision = decide(state, command, now)
        assert decision.refusal is None, decision.refusal
        store(decision.events, actor)

    do(
        DefineCluster(container_cidr="10.200.0.0/16", pods_per_node=64, services=256, quarantine_s=60.0),
        "ops@churn",
    )
    waiting: deque[float] = deque()
    for at_s, joins, name, uid, kind, site, underlay in recorded_changes():
        while waiting and waiting[0] <= at_s:
            now = BEGIN + timedelta(seconds=waiting.popleft())
            do(AdvanceDrains(applied={n.uid: head.sequence for n in state.nodes.values()}), "controller")
        now = BEGIN + timedelta(seconds=at_s)
        if joins:
            do(
                JoinNode(node=name, uid=uid, kind=kind, site=site, underlay=underlay),  # type: ignore[arg-type]
                f"node/{name}",
            )
        else:
            do(LeaveNode(node=name, uid=uid, reason="reclaimed"), f"node/{name}")
            for later in (at_s + 300, at_s + 600):
                if not waiting or waiting[-1] < later:
                    waiting.append(later)
            waiting = deque(sorted(waiting))
    return messages


def write(path: Path, messages: Sequence[StoredMessage] | None = None) -> Path:
    """The churn as an archive."""
    writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="recorded node churn")
    writer.add(list(messages if messages is not None else churn_history()))
    writer.finish()
    return path
