"""An event that cannot be followed is named; the controller stays up, answers questions, decides nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from controlplane.cluster.digest import state_digest
from events.bus.connection import BusOptions
from events.errors import Unavailable, VerificationFailed
from events.protocol.queries import ClusterView, ListNodes, NodePage, ShowCluster
from events.types import NodeLeft, RangeDraining, RangeFreed
from tests.service.onbus import CLUSTER, client, controller
from tests.service.poison import contradicting, damaged, newer, sealed, write
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus


@pytest.mark.parametrize(
    ("make", "reason", "type_"),
    [
        (contradicting, "invariant_violated", "range.freed.v1"),
        (damaged, "event_malformed", "range.freed.v1"),
        (newer, "event_unknown", "node.teleported.v9"),
    ],
)
async def test_the_leader_stays_up_answers_questions_names_the_event_and_refuses_commands(
    bus: BusOptions, tmp_path: Path, make: object, reason: str, type_: str
) -> None:
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        first = await operator.send(join(1), command_id="one")
        before = state_digest(running.replica.state)
        poison = await write(bus, make)
        for _ in range(2):  # again, when it is known already
            with pytest.raises(VerificationFailed) as refused:
                await operator.send(join(2), timeout_s=20)
            assert refused.value.code == "log_poisoned"
            assert refused.value.details["sequence"] == first.sequence + 1
            assert refused.value.details["id"] == poison.id
            assert refused.value.details["type"] == type_
            assert refused.value.details["reason"] == reason
            assert poison.id in refused.value.message
        again = await operator.send(join(1), command_id="one")
        assert again.duplicate
        assert again.result == first.result
        view = await operator.ask(ShowCluster(), ClusterView)
        assert (view.sequence, view.digest, view.nodes) == (first.sequence, before, 1)
        assert [c.code for c in view.conditions if c.severity == "critical"] == ["log_poisoned"]
        assert f"event {first.sequence + 1}" in view.conditions[0].message
        page = await operator.ask(ListNodes(), NodePage)
        assert [node.node for node in page.nodes] == ["n1"]
        assert (await running.log.head()).sequence == first.sequence + 1
        await running.projector.reached(first.sequence)
        assert running.projector.sequence == first.sequence


async def test_a_controller_that_starts_before_such_an_event_runs_and_says_so(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with controller(bus, tmp_path / "a", leads=True), client(bus) as operator:
        await operator.send(DEFINE)
        await operator.send(join(1))
    await write(bus, contradicting)
    program = str(Path(sys.executable).parent / "isthmus")
    at = ("--bus", bus.servers[0], "--cluster", CLUSTER)
    data = ("--data", str(tmp_path / "a"))
    child = subprocess.Popen(  # noqa: ASYNC220  it outlives this call
        [program, "controller", *at, *data, "--name", "a", "--json", "--log-level", "error"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    loop = asyncio.get_running_loop()
    try:
        facts = json.loads(await loop.run_in_executor(None, child.stdout.readline))
        assert facts["sequence"] == 3
        assert "event 4" in facts["halted"]
        async with client(bus) as operator:
            view = await operator.ask(ShowCluster(), ClusterView, timeout_s=30)
            assert view.conditions[0].code == "log_poisoned"

        def ask(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program, *words, *at], capture_output=True, text=True, timeout=60, check=False
            )

        shown = await loop.run_in_executor(None, ask, "cluster", "show")
        assert shown.returncode == 0
        assert "log_poisoned" in shown.stdout
        removed = await loop.run_in_executor(None, ask, "node", "remove", "--yes", "n1")
        assert removed.returncode == 1, removed.stderr
        assert "range.freed.v1" in removed.stderr
        assert "Traceback" not in removed.stderr
        health = await loop.run_in_executor(None, curl, f"{facts['console']}/healthz")
        assert health == 503
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGTERM)
        _, errors = await loop.run_in_executor(None, child.communicate)
    assert child.returncode == 0
    assert errors.count("ALARM log: event 4 ") == 1
    assert "Traceback" not in errors


def curl(url: str) -> int:
    import http.client
    from urllib.parse import urlsplit

    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    connection.request("GET", where.path)
    status = connection.getresponse().status
    connection.close()
    return status


async def test_one_that_cannot_follow_makes_way_for_one_that_can(bus: BusOptions, tmp_path: Path) -> None:
    """As in the middle of an upgrade: the leader is the older release."""
    async with (
        controller(bus, tmp_path / "a", "a", leads=True) as a,
        controller(bus, tmp_path / "b", "b") as b,
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        reply = await operator.send(join(1))
        await b.replica.reached(reply.sequence, timeout_s=30)
        # The leader remembers less than the log says: what follows contradicts its state, not the other's.
        held = a.replica.state.owned.pop("n1")
        left = (
            NodeLeft(node="n1", uid="uid-1"),
            RangeDraining(node="n1", uid="uid-1", cidr=held.cidr, index=held.index, epoch=held.epoch),
        )
        await write(bus, lambda head: sealed(head, *left))
        await until(lambda: a.replica.halted is not None, within_s=30)
        await until(lambda: b.leadership.serving and not a.leadership.leading, within_s=30)
        answered = await operator.send(join(2), timeout_s=30)
        assert answered.result["cidr"]
        assert "n1" not in b.replica.state.nodes
        view = await operator.ask(ShowCluster(), ClusterView)
        assert "log_poisoned" not in {condition.code for condition in view.conditions}
        with pytest.raises(Unavailable, match="does not lead"):  # it knows less than was acknowledged
            await a._ask(ShowCluster.name, msgspec.json.encode(ShowCluster()))
        a.replica.state.owned["n1"] = held  # mended: what could not be followed is read again
        await until(lambda: a.replica.halted is None, within_s=30)
        await a.replica.reached(answered.sequence, timeout_s=30)
        assert state_digest(a.replica.state) == state_digest(b.replica.state)


def test_the_wrong_body_is_wrong() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"cidr":"172.16.40.0/26","index":"none","epoch":3}', type=RangeFreed)
