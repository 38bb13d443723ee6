"""One run: ``python -m tests.faults --seed N [--seconds S] [--every S] [--servers 1|3] --directory DIR``.

Real churn from the recorded files goes to real controllers on real servers, real agents write it into the
kernels of their machines, and everything is killed, paused, cut off, left without a disk or has its clock
set by a schedule that the seed alone makes. At the end the log is replayed and held against every answer
that the clients got, and every kernel against the log; what clients that contend for the same members were
told has to be linearizable, and one command id has one outcome. No answer for a minute in which the bus itself
worked, all in all, is wrong. Exit code 0 when every promise was kept; what was not, the schedule and the
seed are printed. Needs root, or user namespaces; touches nothing outside its own namespaces.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from deploy.churn.drive import Fleet
from deploy.lab import commands
from deploy.lab.machines import sandbox
from deploy.lab.reports.run_directory import RunDirectory
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.errors import Unavailable
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from events.jetstream.status_stream import StatusReader
from tests.faults import raw
from tests.faults.bus_probe import BusProbe
from tests.faults.checker import Verdict, examine
from tests.faults.kernels import Recorder, differing, unattested
from tests.faults.load import Clients, shares
from tests.faults.probes import LANES, Probes
from tests.faults.schedule import EVERY_S, Fault, schedule
from tests.faults.site import CLUSTER, Site, build, stop
from tests.wall_clocks import can_set

CONTAINER_CIDR = IPv4Network("10.64.0.0/12")
START_LIMIT_S = 60.0
SETTLE_LIMIT_S = 60.0
"""For elections, restarts and everything that waits behind them, once every fault is over; and to replay the
log of a long run, which takes a tenth of it at most."""
POLL_S = 0.1
HANGS_S = 150.0
"""Beyond the load's duration: by then every deadline of this program has passed."""


BROKEN = (AssertionError, TimeoutError, Unavailable)
"""What a promise that was not kept looks like; anything else is a defect of this program."""


def leaves(error: BaseException | None) -> list[BaseException]:
    """The errors that a group of groups comes from."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error] if error is not None else []


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


async def live(
    seed: int,
    duration_s: float,
    servers: int,
    every_s: float,
    directory: RunDirectory,
    *,
    clocks: bool,
    pause_s: float,
) -> dict[str, Any]:
    """The run from the first machine to the verdict."""
    asyncio.get_running_loop().call_later(duration_s * 1.2 + HANGS_S, _hangs)
    faults = schedule(seed, duration_s, servers=servers, every_s=every_s, clocks=clocks)
    found: dict[str, Any] = {"seed": seed, "schedule": [str(fault) for fault in faults], "wrong": []}
    made = await build(directory, servers=servers)
    clients = Clients(pause_s)
    try:
        async with asyncio.timeout(START_LIMIT_S):
            await made.buses.start()
            while not await made.buses.ready():  # noqa: ASYNC110  a server tells only who asks
                await asyncio.sleep(POLL_S)
        for part in (*made.controllers.values(), *made.agents.values()):
            await part.daemon.start()
        client = await connect(BusOptions(servers=made.buses.urls), name="clients")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            await _run(made, client, clients, faults, seed, duration_s, found)
    except BROKEN as error:
        found["wrong"].append(_named(error))
    except BaseExceptionGroup as group:  # what ended a client
        mine, defects = group.split(BROKEN)
        if defects is not None:
            raise
        found["wrong"] += [_named(error) for error in leaves(mine)]
    finally:
        found["happened"] = made.events
        found["wrong"] += made.wrong
        found["acknowledged"] = len(clients.answers.acknowledged)
        found["refused"] = sorted(set(clients.answers.refused.values()))
        found["unknown"] = len(clients.answers.unknown)
        found["bus_away_s"] = round(clients.bus.longest_s, 3) if clients.bus else 0.0
        found["slowest_s"] = round(clients.slowest_s, 3)
        await stop(made)
    return found


async def _run(
    made: Site, client: Client, clients: Clients, faults: list[Fault], seed: int, duration_s: float, found: Any
) -> None:
    loop = asyncio.get_running_loop()
    operator = ControllerClient(client, CLUSTER, actor="operator")
    sites = {node.site.name: node.site for node in made.nodes.values()}.values()
    await clients.settle(operator, commands.define(CONTAINER_CIDR, 64, 256, sites, 0.5), "define")
    event_log, reader = JetStreamLog(client, CLUSTER, patience_s=30), StatusReader(client, CLUSTER)
    machines = {name: part.daemon.machine for name, part in made.agents.items()}
    recorder = Recorder(machines, made.logs)
    await _settled(made, event_log, reader, clients)
    await recorder.start()
    fleet = Fleet(client, LiveReader(client, CLUSTER, check_s=1.0), {})
    lanes = [ControllerClient(client, CLUSTER, actor=f"lane-{number}") for number in range(6)]
    probes = Probes(seed, fleet)
    bus = clients.bus = BusProbe(client, servers=len(made.servers))
    async with beside(fleet.run(0), "fleet"), beside(made.watch(client), "watch"), beside(bus.run(), "bus"):
        ends = loop.time() + duration_s
        suffering = asyncio.create_task(made.suffer(faults), name="faults")
        async with asyncio.TaskGroup() as group:
            group.create_task(_through(suffering))
            for number in range(LANES):
                group.create_task(
                    probes.lane(number, operator, lambda: loop.time() >= ends and suffering.done())
                )
            for lane, work in enumerate(shares(seed)):
                group.create_task(
                    clients.lane(
                        lanes[lane], fleet, work, lane, lambda: loop.time() >= ends and suffering.done()
                    )
                )
        await probes.leave(operator)
        verdict = await _settled(made, event_log, reader, clients, SETTLE_LIMIT_S + duration_s / 10)
    await recorder.stop()
    found["operations"] = len(probes.history)
    found["wrong"] += await probes.judge(event_log)
    found["wrong"] += raw.differing(clients.answers, await raw.stored(client, CLUSTER))
    found["events"] = verdict.head.sequence
    found["wrong"] += [*verdict.wrong, *recorder.taken_away(verdict.state)]
    found["wrong"] += await differing(machines, verdict.state)


async def _through(task: asyncio.Task[None]) -> None:
    """Part of the group: a defect of the faults themselves ends the run."""
    await task


async def _settled(
    made: Site, log: JetStreamLog, reader: StatusReader, clients: Clients, limit_s: float = SETTLE_LIMIT_S
) -> Verdict:
    """The verdict on the log, once every agent attests what it demands at its end. Raises AssertionError."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + limit_s
    while True:
        open_ = ["the log cannot be read"]
        with contextlib.suppress(Unavailable):
            verdict = await examine(log, clients.answers)
            statuses = {reported.status.node: reported.status for reported in await reader.all()}
            if set(made.nodes) <= set(verdict.state.owned):
                open_ = unattested(verdict.attestor, verdict.state, statuses, list(made.nodes))
            else:
                open_ = [f"{name} has no range" for name in sorted(set(made.nodes) - set(verdict.state.owned))]
            if not open_:
                return verdict
        if loop.time() > deadline_s:
            raise AssertionError(f"{limit_s:g} s after the last fault: {'; '.join(open_)}")
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Something that runs for as long as the block; its failure is the block's."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _hangs() -> None:
    """What every task waits for, and the end."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()
    os._exit(3)


def told(found: dict[str, Any]) -> str:
    """What a person needs to know of a run."""
    begin = (
        f"seed {found['seed']}: {found.get('events', 0):,} events, {found['acknowledged']:,} commands "
        f"acknowledged (the slowest after {found['slowest_s']:.1f} s), {found['unknown']} without an answer, "
        f"the bus took nothing for {found['bus_away_s']:.1f} s at most, "
        f"{found.get('operations', 0):,} operations in a history that has to be linearizable"
    )
    lines = [begin, *found["happened"]]
    if not found["wrong"]:
        return "\n".join([*lines, "every promise was kept"])
    return "\n".join([*lines, "the whole schedule:", *found["schedule"], "wrong:", *found["wrong"][:20]])


def main() -> int:
    """Returns the exit code."""
    about = (__doc__ or "").split("\n\n")[1]
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=about)
    parser.add_argument("--seed", type=int, required=True, help="makes the schedule")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long faults and load last")
    parser.add_argument("--servers", type=int, choices=(1, 3), default=3, help="bus servers")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two faults")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two commands of one client")
    parser.add_argument("--directory", type=Path, required=True, help="for logs and state; has to be empty")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    arguments = parser.parse_args()
    directory = RunDirectory(arguments.directory.absolute())

    def work() -> int:
        logging.basicConfig(filename=directory.log("clients"), format="%(asctime)s %(name)s: %(message)s")
        found = asyncio.run(
            live(
                arguments.seed,
                arguments.seconds,
                arguments.servers,
                arguments.every,
                directory,
                clocks=can_set(),
                pause_s=arguments.pause,
            )
        )
        print(json.dumps(found) if arguments.json else told(found))
        return 1 if found["wrong"] else 0

    directory.prepare()
    return sandbox.run(work, lambda *_: None)


if __name__ == "__main__":
    sys.exit(main())
