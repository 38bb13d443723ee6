"""The checker complains: about what was lost, doubled, changed, and about kernels that differ."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from controlplane.cluster.decide import decide
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.machine import Machine
from events.attestation import ClusterSum
from events.chain import genesis
from events.codec import Cause, Recorded, decode, seal
from events.memory import MemoryLog
from events.protocol.commands import Command, CommandReply, DefineCluster, JoinNode, WrittenEvent
from events.status import AgentStatus
from tests.faults.checker import Answers, Verdict, doubled, examine
from tests.faults.kernels import Recorder, unattested
from tests.faults.site import Part

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODES = ("a", "b", "c")
COMMANDS: dict[str, Command] = {
    "define": DefineCluster(container_cidr="10.64.0.0/16", pods_per_node=64, services=256),
    **{
        f"join-{name}": JoinNode(node=name, uid=f"uid-{name}", kind="cloud", underlay=f"10.0.0.{index + 1}")
        for index, name in enumerate(NODES)
    },
}


@pytest.fixture
async def log() -> MemoryLog:
    """A log with a cluster of three nodes."""
    return await written(COMMANDS)


async def written(commands: dict[str, Command]) -> MemoryLog:
    made, state, head = MemoryLog("faults"), ClusterState("faults"), genesis("faults")
    for command_id, command in commands.items():
        events = list(decide(state, command, NOW).events)
        cause = Cause(command_id=command_id, actor="test", time=NOW, source="test")
        messages, after = seal("faults", head, [(cause, events)])
        await made.append(messages, expected=head.sequence)
        head = after
        for event in events:
            evolve(state, state.sequence + 1, event)
    return made


async def stored(log: MemoryLog) -> dict[str, list[Recorded]]:
    """Command id → its events."""
    found: dict[str, list[Recorded]] = defaultdict(list)
    async for batch in log.read():
        for message in batch.messages:
            recorded = decode(message)
            found[recorded.envelope.command_id].append(recorded)
    return found


async def answers_of(log: MemoryLog) -> Answers:
    """What the clients were told, had everything gone well."""
    told = Answers()
    for command_id, records in (await stored(log)).items():
        events = tuple(WrittenEvent(sequence=r.sequence, type=r.envelope.type, event={}) for r in records)
        told.acknowledged[command_id] = CommandReply(sequence=records[-1].sequence, events=events)
    return told


async def test_a_whole_log_and_true_answers_are_not_complained_about(log: MemoryLog) -> None:
    verdict = await examine(log, await answers_of(log))
    assert verdict.wrong == []
    assert set(verdict.state.nodes) == set(NODES)


async def test_what_was_acknowledged_and_is_not_in_the_log_is_named(log: MemoryLog) -> None:
    answers = await answers_of(log)
    shorter = await written({name: command for name, command in COMMANDS.items() if name != "join-c"})
    (line,) = (await examine(shorter, answers)).wrong
    assert "join-c" in line


async def test_an_acknowledgement_with_other_sequences_is_named(log: MemoryLog) -> None:
    answers = await answers_of(log)
    reply = answers.acknowledged["join-b"]
    moved = tuple(msgspec.structs.replace(event, sequence=event.sequence + 1) for event in reply.events)
    answers.acknowledged["join-b"] = msgspec.structs.replace(reply, events=moved)
    (line,) = (await examine(log, answers)).wrong
    assert "join-b" in line


async def test_a_silent_acknowledgement_of_what_was_never_stored_is_named(log: MemoryLog) -> None:
    """A repeated command is answered without its events: the answer is still a promise."""
    answers = await answers_of(log)
    answers.acknowledged["join-d"] = CommandReply(sequence=3, result={"cidr": "10.64.9.0/26"})
    (line,) = (await examine(log, answers)).wrong
    assert "join-d" in line


async def test_a_command_that_took_effect_twice_or_in_parts_is_named(log: MemoryLog) -> None:
    records = (await stored(log))["join-b"]
    assert len(records) == 2
    assert doubled("join-b", records) == []
    for wrong in (records * 2, records[:1], [records[0], records[1]._replace(sequence=99)]):
        (line,) = doubled("join-b", wrong)
        assert "join-b" in line


def status(verdict: Verdict, name: str, **changes: object) -> AgentStatus:
    """What the agent of a kernel in order reports."""
    state, total = verdict.state, ClusterSum()
    for owner, owned in state.owned.items():
        total.put(owned.cidr, state.nodes[owner].vtep_mac, state.nodes[owner].announced)
    assert state.definition is not None
    digest = total.expected(
        state.owned[name].cidr, state.nodes[name].vtep_mac, state.definition.vni, state.definition.vxlan_port
    )
    made = AgentStatus(node=name, uid=f"uid-{name}", applied=state.sequence, sent_at=NOW, kernel_digest=digest)
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kernel_digest": "0" * 64}, "not what is expected"),
        ({"kernel_digest": ""}, "nothing"),
        ({"applied": 3}, "event 3 of"),
        ({"uid": "another"}, "has not reported"),
    ],
)
async def test_an_agent_that_attests_anything_else_is_named(
    log: MemoryLog, changes: dict[str, object], said: str
) -> None:
    verdict = await examine(log, Answers())
    good = {name: status(verdict, name) for name in NODES}
    assert unattested(verdict.attestor, verdict.state, good, list(NODES)) == []
    bad = good | {"b": status(verdict, "b", **changes)}
    (line,) = unattested(verdict.attestor, verdict.state, bad, list(NODES))
    assert line.startswith("b ")
    assert said in line


async def test_a_row_that_vanished_for_a_moment_is_named_unless_its_node_left(
    log: MemoryLog, tmp_path: Path
) -> None:
    verdict = await examine(log, Answers())
    machines: dict[str, Machine] = dict.fromkeys(("a", "b"))  # type: ignore[arg-type]  # nothing is started in them
    recorder = Recorder(machines, tmp_path)
    staying, leaving = verdict.state.owned["b"].cidr, verdict.state.owned["c"].cidr
    (tmp_path / "kernel-a.log").write_text(f"Deleted {leaving} via 10.64.0.128 dev isthmus proto 84 onlink\n")
    (tmp_path / "kernel-b.log").write_text("")
    assert recorder.taken_away(verdict.state) == []
    mac = verdict.state.nodes["b"].vtep_mac
    for row in (f"{staying} via {staying[:-3]} dev isthmus", f"{mac} dev isthmus dst 10.0.0.2"):
        (tmp_path / "kernel-a.log").write_text(f"Deleted {row}\n")
        (line,) = recorder.taken_away(verdict.state)
        assert line.startswith("the kernel of a lost")


class ThisMachine:
    """Where a test's own processes run."""

    name = "here"

    def inside(self, *arguments: str) -> list[str]:
        return [*arguments]


async def test_two_supervisors_that_find_a_process_ended_start_it_once(tmp_path: Path) -> None:
    """Else the second would take the first one's ports, or fail for them again and again."""
    part = Part(Daemon("sleeper", ThisMachine(), ["sleep", "60"], tmp_path / "log"))  # type: ignore[arg-type]
    try:
        await asyncio.gather(*(part.ensure_running() for _ in range(3)))
        assert part.daemon.starts == 1
        await part.daemon.kill()
        await part.ensure_running()
        assert part.daemon.starts == 2
    finally:
        await part.daemon.kill()
