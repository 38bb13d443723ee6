"""A whole deployment under load while things break: real servers, real controllers, live followers.

The controllers are processes, the clients and followers live in this one. Every part connects
through a link of its own kind that can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

from nats.aio.client import Client

from deploy.churn.drive import Fleet
from deploy.churn.trace import Change, changes, find_files, load, simulated_uid
from events.bus import BusOptions, connect
from events.chain import verify_link
from events.client import ControllerClient
from events.codec import decode
from events.commands import Command, DefineCluster, JoinNode, LeaveNode
from events.errors import OutcomeUnknown, Overloaded, Refused, Unavailable
from events.ids import event_id
from events.jetstream.log import JetStreamLog
from events.live import LiveReader
from events.server.cluster import ServerCluster
from events.server.config import ServerOptions
from events.server.process import EmbeddedServer
from nodeagent.view import View
from tests.events.waiting import until
from tests.faults.checker import Answers, Verdict, examine
from tests.faults.links import Link
from tests.faults.schedule import Fault

CLUSTER = "faults"
CHURN = Path(__file__).parents[1] / "data" / "node-churn"
ISTHMUS = Path(sys.executable).parent / "isthmus"
TRY_S = 4.0
"""How long a client lets one command hang before it asks again with the same id."""

log = logging.getLogger("isthmus.faults")


class ControllerProcess:
    """``isthmus controller``, killed and started again at will."""

    def __init__(self, urls: tuple[str, ...], data: Path, name: str, replicas: int) -> None:
        self._command = [
            str(ISTHMUS),
            *("controller", "--bus", ",".join(urls), "--cluster", CLUSTER, "--data", str(data)),
            *("--name", name, "--replicas", str(replicas), "--log-level", "error"),
        ]
        self._output = data.with_suffix(".log")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdout=output, stderr=output)

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def ensure_running(self) -> None:
        """Continue it, or start it anew when it has ended (a supervisor's work)."""
        if self._process is None or self._process.returncode is not None:
            await self.start()
        else:
            self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    def words(self) -> str:
        return self._output.read_text(errors="replace")[-2000:] if self._output.exists() else ""


class Follower:
    """What an agent does with the log: follow live, verify the chain, fold."""

    def __init__(self, client: Client, name: str) -> None:
        self.view = View(CLUSTER, name, "follower")
        self._reader = LiveReader(client, CLUSTER, check_s=1.0)
        self.task = asyncio.create_task(self._run(), name=name)

    async def _run(self) -> None:
        async for batch in self._reader.read(follow=True):
            for message in batch.messages:
                self.view.head = verify_link(
                    self.view.head, message.sequence, message.subject, message.headers, message.body
                )
                self.view.apply(message.sequence, decode(message).event)


class World:
    """Made by :func:`world`."""

    def __init__(
        self, servers: list[EmbeddedServer], controllers: list[ControllerProcess], links: list[Link]
    ) -> None:
        self.servers = servers
        self.controllers = controllers
        self.links = links
        self.answers = Answers()
        self.followers: list[Follower] = []
        self.faults: list[str] = []
        self._healing: set[asyncio.Task[None]] = set()

    # --- faults ------------------------------------------------------------------------------------

    async def suffer(self, faults: list[Fault]) -> None:
        """Carry the schedule out; returns when the last fault was healed."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.at_s - loop.time()))
            self.faults.append(str(fault))
            self._healing.add(asyncio.create_task(self._one(fault)))
        await asyncio.gather(*self._healing)

    async def _one(self, fault: Fault) -> None:
        if fault.kind == "kill server":
            self.servers[fault.target].signal(signal.SIGKILL)  # its watcher starts it again
        elif fault.kind == "pause server":
            self.servers[fault.target].signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            self.servers[fault.target].signal(signal.SIGCONT)
        elif fault.kind == "kill controller":
            await self.controllers[fault.target].kill()
            await asyncio.sleep(fault.lasts_s)
            await self.controllers[fault.target].ensure_running()
        elif fault.kind == "pause controller":
            self.controllers[fault.target].signal(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            await self.controllers[fault.target].ensure_running()
        else:
            self.links[fault.target].cut()
            await asyncio.sleep(fault.lasts_s)
            self.links[fault.target].mend()

    async def heal(self) -> None:
        """Everything runs again."""
        for link in self.links:
            link.mend()
        for server in self.servers:
            server.signal(signal.SIGCONT)
            await server.wait_ready(30)
        for controller in self.controllers:
            await controller.ensure_running()

    # --- load --------------------------------------------------------------------------------------

    async def settle(
        self, client: ControllerClient, command: Command, command_id: str, patience_s: float = 60.0
    ) -> bool:
        """Send until there is an answer; remember it. False when there was none in ``patience_s``."""
        deadline = asyncio.get_running_loop().time() + patience_s
        while asyncio.get_running_loop().time() < deadline:
            try:
                reply = await client.send(command, command_id=command_id, timeout_s=TRY_S, try_timeout_s=1.5)
            except (OutcomeUnknown, Unavailable, Overloaded):
                self.answers.unknown.add(command_id)
                continue
            except Refused as refusal:
                self.answers.refused[command_id] = refusal.code
            else:
                self.answers.acknowledged[command_id] = reply
            self.answers.unknown.discard(command_id)
            return True
        return False

    async def lane(
        self, client: Client, fleet: Fleet, work: list[Change], lane: int, stopped: Callable[[], bool]
    ) -> None:
        """One client after the other's manner: joins and leaves in the trace's order."""
        controller = ControllerClient(client, CLUSTER, actor=f"lane-{lane}")
        for number, change in enumerate(endlessly(work)):
            if stopped():
                return
            instance = change.instance
            command: Command
            if change.joins:
                command = JoinNode(
                    node=instance.name,
                    uid=instance.uid,
                    kind=instance.kind,
                    underlay=instance.underlay,
                    site=instance.site,
                )
            else:
                command = LeaveNode(node=instance.name, uid=instance.uid, reason="reclaimed")
            if not await self.settle(controller, command, event_id(f"lane-{lane}", number)):
                raise AssertionError(f"no answer to {command} for a minute")
            if change.joins:
                fleet.live[instance.name] = instance.uid
            else:
                fleet.live.pop(instance.name, None)


def endlessly(work: list[Change]) -> Iterator[Change]:
    """The trace, then everybody left leaves, then the trace again with new instances, and so on."""
    for turn in count():
        left: dict[str, Change] = {}
        for change in work:
            name = f"{change.instance.name}-{turn}"
            instance = replace(change.instance, name=name, uid=simulated_uid(name))
            made = replace(change, instance=instance)
            if made.joins:
                left[name] = replace(made, joins=False)
            else:
                del left[name]
            yield made
        yield from left.values()


@asynccontextmanager
async def world(directory: Path, *, servers: int, controllers: int, followers: int = 3) -> AsyncIterator[World]:
    """Servers (1 or 3), controllers, links, followers; all ended behind the block, whatever happened."""
    async with contextlib.AsyncExitStack() as stack:
        if servers == 1:
            single = EmbeddedServer(ServerOptions(store_dir=directory / "bus"))
            await stack.enter_async_context(single)
            running = [single]
        else:
            cluster = ServerCluster(directory / "bus", size=servers)
            await stack.enter_async_context(cluster)
            running = cluster.servers
        urls = tuple(server.url for server in running)
        links = [Link(url) for url in urls]
        for link in links:
            await link.start()
            stack.push_async_callback(link.stop)
        processes = [
            ControllerProcess(urls, directory / f"controller-{n}", f"c{n}", 3 if servers >= 3 else 1)
            for n in range(controllers)
        ]
        for process in processes:
            await process.start()
            stack.push_async_callback(process.kill)
        made = World(running, processes, links)
        for number in range(followers):
            client = await connect(
                BusOptions(servers=tuple(link.url for link in links)), name=f"follower-{number}"
            )
            stack.push_async_callback(client.close)
            made.followers.append(Follower(client, f"follower-{number}"))

        async def end_followers() -> None:
            for follower in made.followers:
                follower.task.cancel()
            await asyncio.gather(*(follower.task for follower in made.followers), return_exceptions=True)

        stack.push_async_callback(end_followers)
        yield made


async def run(made: World, faults: list[Fault], *, duration_s: float, seed: int = 0) -> Verdict:
    """Load for ``duration_s`` while the faults happen; then heal, converge and examine the log."""
    urls = tuple(link.url for link in made.links)
    async with contextlib.AsyncExitStack() as stack:
        client = await connect(BusOptions(servers=urls), name="clients")
        stack.push_async_callback(client.close)
        operator = ControllerClient(client, CLUSTER, actor="operator")
        define = DefineCluster(
            container_cidr="10.64.0.0/12",
            pods_per_node=64,
            services=256,
            quarantine_s=0.5,
            unreachable_after_s=600,
        )
        assert await made.settle(operator, define, "define"), _words(made)

        traces = load(find_files([CHURN]))
        recorded = list(changes(traces, run="f", order="longest-lived", seed=seed))
        shares = [[change for change in recorded if change.instance.site == trace.site] for trace in traces]
        fleet = Fleet(client, LiveReader(client, CLUSTER, check_s=1.0), {})
        reporting = asyncio.create_task(fleet.run(0))
        loop = asyncio.get_running_loop()
        ends = loop.time() + duration_s

        def stopped() -> bool:
            return loop.time() >= ends and suffering.done()

        suffering = asyncio.create_task(made.suffer(faults))
        try:
            async with asyncio.TaskGroup() as group:
                for lane, share in enumerate(shares):
                    group.create_task(made.lane(client, fleet, share, lane, stopped))
            await suffering
            await made.heal()
            verdict = await _converged(made, client)
        finally:
            for task in (suffering, reporting):
                task.cancel()
            await asyncio.gather(suffering, reporting, return_exceptions=True)
        return verdict


async def _converged(made: World, client: Client) -> Verdict:
    """Wait until every follower stands at the log's end, then examine the log."""
    event_log = JetStreamLog(client, CLUSTER, patience_s=30)

    async def level() -> bool:
        for follower in made.followers:
            if follower.task.done():
                follower.task.result()
        head = await event_log.head()
        return all(follower.view.head == head for follower in made.followers)

    await until(level, within_s=45, what="the followers did not reach the log's end")
    verdict = await examine(event_log, made.answers)
    for follower in made.followers:
        expected, seen = set(verdict.state.nodes), set(follower.view.members)
        if seen != expected:
            verdict.wrong.append(f"{follower.view.node} differs in the members {sorted(seen ^ expected)[:5]}")
    return verdict


def _words(made: World) -> str:
    return "\n".join(controller.words() for controller in made.controllers)


def report(made: World, verdict: Verdict, seed: int) -> str:
    """What a failing run prints: the seed that repeats it, the schedule, what is wrong."""
    return "\n".join(
        (
            f"seed {seed}: {verdict.events} events, {len(made.answers.acknowledged)} commands acknowledged",
            f"{len(made.answers.refused)} refused, {len(made.answers.unknown)} unknown",
            *made.faults,
            "wrong:",
            *verdict.wrong[:20],
        )
    )
