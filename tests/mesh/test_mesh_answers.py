"""What is told with a finding: the events just before it began, and no others."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from controlplane.changes import Changes
from controlplane.cli.mesh.command import mesh as command
from controlplane.controller.mesh.answers import MeshAnswers
from events.chain import genesis
from events.codec import Cause, Recorded, StoredMessage, decode, seal
from events.errors import Refused, Usage
from events.protocol.mesh import ShowMesh
from events.types import Event, Network, NetworkDeclared, NodeLeft, PathLost
from tests.mesh.world import World
from tests.waiting import until


def stored(event: Event, sequence: int, before_s: float) -> Recorded:
    at = datetime.now(UTC) - timedelta(seconds=before_s)
    cause = Cause(command_id=f"c{sequence}", actor="ops", time=at, source="test")
    (message,), _ = seal("sim", genesis("sim"), [(cause, [event])])
    return decode(StoredMessage(sequence, message.subject, message.headers, message.body, recorded_ns=1))


async def test_a_finding_tells_the_events_of_the_minute_before_the_newest_first() -> None:
    world = World({"a": 4, "b": 4})
    world.acquaint()
    world.run(3)
    replica: Any = SimpleNamespace(state=world.state)
    answers, changes = MeshAnswers(world.collector, replica), Changes()
    follower = asyncio.create_task(answers.recent.follow(changes))
    await until(lambda: changes.statistics()["subscribers"] == 1)
    changes.publish(
        [
            stored(NodeLeft(node="long-ago", uid="u"), 41, 300),
            stored(NetworkDeclared(cluster="sim", network=Network(cidr="192.168.77.0/24", kind="idc")), 42, 40),
            stored(PathLost(scope="node", a="b-3"), 43, 20),  # what it says itself is no cause
            stored(NodeLeft(node="b-9", uid="u"), 44, 12),
        ]
    )
    await until(lambda: len(answers.recent.before(datetime.now(UTC))) == 2)
    world.agents["b-1"].up = False
    world.run(6)
    (found,) = answers.view(ShowMesh()).findings
    assert (found.scope, found.a) == ("node", "b-1")
    newest, oldest = found.before
    assert newest.startswith("event 44: node.left.v1 of b-9, ")
    assert oldest.startswith("event 42: cluster.network-declared.v1 of ") or "network" in oldest
    # It began some simulated seconds ago: by so much less were these before it.
    seconds = [int(text.rpartition(", ")[2].split()[0]) for text in found.before]
    assert 2 <= seconds[0] <= 12
    assert 30 <= seconds[1] <= 40
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)


async def test_without_events_just_before_nothing_is_told_of_them() -> None:
    world = World({"a": 4, "b": 4})
    world.acquaint()
    world.run(3)
    world.agents["b-1"].up = False
    world.run(6)
    replica: Any = SimpleNamespace(state=world.state)
    answers = MeshAnswers(world.collector, replica)
    (found,) = answers.view(ShowMesh()).findings
    assert found.before == ()
    with pytest.raises(Refused, match="no live node is at a site 'nowhere'; sites: a, b"):
        answers.view(ShowMesh(site="a", other="nowhere"))


def test_a_line_that_asks_for_no_pair_is_a_usage_error() -> None:
    for line in (["a", "a"], ["a", "b", "c"], ["--other", "x"]):
        asked = CliRunner().invoke(command, line)
        assert isinstance(asked.exception, Usage), line


async def test_who_does_not_measure_is_neither_measured_nor_lost() -> None:
    world = World({"a": 2, "b": 2})
    world.agents["b-1"].probes = False
    world.run(60)
    replica: Any = SimpleNamespace(state=world.state)
    answers = MeshAnswers(world.collector, replica)
    view = answers.view(ShowMesh())
    assert sum(path.measured for path in view.sites) == 3 * 2 + 3  # of b-1 its kernel answers
    assert sum(path.lost for path in view.sites) == 0
    assert view.unmeasured == ("b-1",)
    world.agents["b-0"].up = False
    world.run(30)  # what it said last is what was
    (there,) = [path for path in answers.view(ShowMesh()).sites if (path.a, path.b) == ("a", "b")]
    assert (there.measured, there.lost) == (4, 2)
    assert [path.measured for path in answers.view(ShowMesh()).sites if path.a == "b"] in ([], [0], [0, 0])


async def test_what_only_one_end_says_is_said_to_be_that() -> None:
    world = World({"a": 4, "b": 4})
    world.acquaint()
    world.run(3)
    deaf = {"a-1", "b-1"}
    world.passes = lambda a, b, _large: {a.name, b.name} != deaf
    world.run(3)
    del world.collector._bad["b-1"]
    replica: Any = SimpleNamespace(state=world.state)
    (found,) = MeshAnswers(world.collector, replica).view(ShowMesh()).findings
    assert "only one end has said so yet" in found.evidence
