"""One history: a cluster, its nodes and its operator under a schedule of faults, judged at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from controlplane.cluster.digest import state_digest
from events.errors import IsthmusError
from events.protocol.commands import (
    AdoptedNode,
    AdoptNodes,
    BeginAdoption,
    Command,
    CommandReply,
    DefineCluster,
    EndAdoption,
    FenceNode,
    ReleaseClb,
    RemoveNode,
    ReserveClb,
)
from tests.linearizability import Op, violation
from tests.simulation import virtual
from tests.simulation.clients import Client
from tests.simulation.controllers import SimController
from tests.simulation.faults import Fault, Weather, draw, shrink
from tests.simulation.in_memory import MemoryLease, MemoryOutcomes
from tests.simulation.nodes import SimNode
from tests.simulation.truth import WatchedLog, Wrong

CLUSTER = "sim"
LENGTH_S = 12.0
"""Virtual seconds with faults and commands; then everything heals and must converge."""
HEALING_S = 120.0
CONTROLLERS = ("a", "b")
NODES = 4
# Six ranges for four nodes: a released one is soon needed again, so that unsafe reuse would show.
DEFINE = DefineCluster(
    container_cidr="10.0.0.0/25", pods_per_node=16, services=32, quarantine_s=0.0, unreachable_after_s=4.0
)
# Every third history has ranges rest, and removes the silent: what clocks that jump must not hurry.
TIMED = msgspec.structs.replace(DEFINE, quarantine_s=1.5, remove_after_s=2.0)


class Outcome(NamedTuple):
    """What a run came to. ``wrong`` is empty when every promise was kept."""

    wrong: str
    events: int
    commands: int
    digest: str


async def _live(seed: int, faults: Sequence[Fault]) -> Outcome:
    loop = asyncio.get_running_loop()
    weather = Weather(seed, faults, loop.time)
    log = WatchedLog(CLUSTER, lambda: int(loop.time() * 1e9))
    place = MemoryLease.Slot()
    acknowledged: dict[str, CommandReply] = {}
    history: list[Op] = []
    told: dict[str, set[str]] = {}
    store = MemoryOutcomes.Store()
    controllers = [SimController(name, log, place, store, weather, seed) for name in CONTROLLERS]
    nodes = [
        SimNode(
            number,
            log,
            weather,
            Client(f"n{number}", CLUSTER, controllers, weather, acknowledged, history, told),
            controllers,
        )
        for number in range(NODES)
    ]
    operator = Client("operator", CLUSTER, controllers, weather, acknowledged, history, told)
    auditor = Client("auditor", CLUSTER, controllers, weather, acknowledged, history, told)
    running = [asyncio.create_task(controller.live_and_die(LENGTH_S)) for controller in controllers]
    running += [asyncio.create_task(controller.stand_still()) for controller in controllers]
    wrong = ""
    try:
        await operator.send(TIMED if seed % 3 == 0 else DEFINE)
        lives = [asyncio.create_task(node.live(LENGTH_S)) for node in nodes]
        lives += [asyncio.create_task(node.obey_schedule()) for node in nodes]
        lives.append(asyncio.create_task(_operate(operator, weather)))
        lives.append(asyncio.create_task(_audit(auditor, weather)))
        await asyncio.gather(*lives)
        await asyncio.gather(*running)
        running += [asyncio.create_task(node.recover()) for node in nodes]
        await _converge(log, controllers, nodes)
        wrong = "; ".join([*log.final(acknowledged), *log.outcomes(told)]) or violation(history)
    except Wrong as error:
        wrong = str(error)
    except (virtual.Deadlock, IsthmusError) as error:
        wrong = f"{type(error).__name__}: {error}"
    for controller in controllers:
        wrong = controller.ended() or wrong
    if log.wrong is not None:
        wrong = str(log.wrong)
    return Outcome(wrong, log.chain.sequence, len(acknowledged), log.digest)


async def _operate(client: Client, weather: Weather) -> None:
    """An operator who removes, fences, reserves."""
    loop, dice = asyncio.get_running_loop(), weather.dice("operator", "")
    while loop.time() < LENGTH_S:
        await asyncio.sleep(dice.uniform(0.3, 3.0))
        name = f"n{dice.randrange(NODES)}"
        commands: tuple[Command, ...] = (
            RemoveNode(node=name, reason="operator"),
            FenceNode(node=name, reason="operator"),
            ReserveClb(reservation="lb", subnet="10.9.0.0/29"),
            ReleaseClb(reservation="lb"),
            BeginAdoption(source="flannel"),
            AdoptNodes(nodes=(_old(dice.randrange(6)),)),
            EndAdoption(),
        )
        await client.send(dice.choice(commands))


def _old(number: int) -> AdoptedNode:
    """A machine that had its range before there was this cluster. It is never heard, and stays a member."""
    return AdoptedNode(
        node="old",
        uid="uid-old",
        kind="cloud",
        underlay="192.0.2.200",
        range=f"10.0.0.{16 * number}/28",
        vtep_mac="8a:00:00:00:00:01",
    )


async def _audit(client: Client, weather: Weather) -> None:
    """Somebody who asks who is a member."""
    loop, dice = asyncio.get_running_loop(), weather.dice("auditor", "")
    async with (
        asyncio.TaskGroup() as questions
    ):  # none waits for the one before: some are asked of who stands still
        while loop.time() < LENGTH_S:
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            questions.create_task(client.look(f"n{dice.randrange(NODES)}"))


async def _converge(log: WatchedLog, controllers: list[SimController], nodes: list[SimNode]) -> None:
    """With every fault over, everybody comes to the same and nothing stays open."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + HEALING_S
    while True:
        for controller in controllers:
            if ended := controller.ended():
                raise Wrong(ended)
        if log.wrong is not None:
            raise log.wrong
        open_ = _open(log, controllers, nodes)
        if not open_:
            return
        if loop.time() > deadline_s:
            raise Wrong(f"after {HEALING_S:g} s without faults: {open_}")
        await asyncio.sleep(0.5)


def _open(log: WatchedLog, controllers: list[SimController], nodes: list[SimNode]) -> str:
    """What has not converged yet."""
    state, digest = log.state, log.digest
    for controller in controllers:
        if controller.replica is None or state_digest(controller.replica.state) != digest:
            return f"controller {controller.name} does not have the state of the log"
    if sum(controller.leadership.leading for controller in controllers) != 1:
        return "not exactly one controller leads"
    if state.draining or state.quarantined:
        return f"ranges {sorted(state.draining)} drain and {sorted(state.quarantined)} rest"
    if state.unreachable:
        return f"{sorted(state.unreachable)} count as unreachable"
    for node in nodes:
        member = state.nodes.get(node.name)
        if member is None or member.uid != node.uid:
            continue  # an operator removed it last
        wanted = {r.cidr: r.epoch for r in state.owned.values() if r.node != node.name}
        if node.kernel != wanted:
            return f"the kernel of {node.name} has {node.kernel}, wanted {wanted}"
    return ""


def live(seed: int, faults: Sequence[Fault] | None = None) -> Outcome:
    """Run one seed, under its own schedule unless another is given."""
    nodes = [f"n{number}" for number in range(NODES)]
    return virtual.run(_live(seed, draw(seed, CONTROLLERS, nodes, LENGTH_S) if faults is None else faults))


def explain(seed: int) -> str:
    """The smallest schedule under which the seed still fails, as text."""
    nodes = [f"n{number}" for number in range(NODES)]
    needed = shrink(draw(seed, CONTROLLERS, nodes, LENGTH_S), lambda faults: bool(live(seed, faults).wrong))
    lines = [f"seed {seed}: {live(seed, needed).wrong}", "schedule that is needed:"]
    return "\n".join([*lines, *(f"  {fault}" for fault in needed or ("(no fault at all)",))])
