"""A whole controller over a log in memory, with the console served: what browser and API tests look at.

Run as a program it stays up for a person: ``python -m tests.console.rig 10000``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from controlplane.cluster.decision import MarkPaths
from controlplane.console.inspector import Inspector
from controlplane.console.live_feed import LiveFeed
from controlplane.console.server import serve
from controlplane.controller.agents.agent_history.recorder import Recorder
from controlplane.controller.agents.liveness import Liveness, watch_members
from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.ticker import Ticker
from controlplane.controller.mesh.answers import MeshAnswers
from controlplane.controller.mesh.collector import Collector
from controlplane.controller.observability.live import LiveNumbers
from controlplane.controller.observability.setup import Observability
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import Request
from controlplane.readmodel.projector import Projector
from events.attestation import ClusterSum
from events.ids import new_id
from events.memory import MemoryLog
from events.mesh import ANSWERED, LARGE_OK, PEERS_MAX, SILENT, MeshReport, PeerSeen
from events.protocol.commands import (
    AddBackend,
    Command,
    CommandReply,
    DefineCluster,
    ImportNodes,
    JoinNode,
    LeaveNode,
    MarkGateway,
    ReportHealth,
    ReserveClb,
)
from events.status import AgentStatus, WaysReport
from events.types import Network

CLUSTER = "prod"
SITES = (("cloud", "cloud-a"), ("cloud", "cloud-b"), ("external", "idc-north"), ("external", "idc-harbour"))


class Rig:
    """The parts, and hands to move them."""

    def __init__(
        self,
        url: str,
        committer: Committer,
        replica: Replica,
        liveness: Liveness,
        source: Inspector,
        feed: LiveFeed,
        ticker: Ticker,
        recorder: Recorder,
        mesh: Collector,
    ) -> None:
        self.url = url
        self.committer = committer
        self.replica = replica
        self.liveness = liveness
        self.source = source
        self.feed = feed
        self.ticker = ticker
        self.recorder = recorder
        self.mesh = mesh
        self._sum = ClusterSum()
        self._summed_at = -1

    async def send(self, command: Command, **extra) -> CommandReply:
        return await self.committer.submit(
            Request(
                command=command,
                command_id=extra.pop("command_id", "") or new_id(),
                actor="ops@desk",
                received_s=asyncio.get_running_loop().time(),
                **extra,
            )
        )

    async def define(self, nodes: int) -> None:
        cidr, pods = ("172.16.0.0/16", 64) if nodes <= 1000 else ("10.64.0.0/12", 64)
        await self.send(
            DefineCluster(
                container_cidr=cidr,
                pods_per_node=pods,
                services=256 if nodes <= 1000 else 4096,
                networks=(
                    Network(kind="vpc", cidr="192.168.0.0/16", name="main"),
                    Network(kind="idc", cidr="10.10.0.0/16"),
                ),
                quarantine_s=30.0,
            )
        )
        await self.send(ReserveClb(reservation="apiserver", subnet="192.168.9.0/28", gateway="192.168.9.1"))

    async def fill(self, nodes: int) -> None:
        """Join so many nodes; every agent reports that it has applied everything."""
        joins = [join(number) for number in range(1, nodes + 1)]
        for start in range(0, nodes, 400):
            await self.send(ImportNodes(nodes=tuple(joins[start : start + 400])))
        self.report_all()

    def report_all(
        self,
        *,
        behind: tuple[str, ...] = (),
        wrong: tuple[str, ...] = (),
        gateways: tuple[str, ...] = (),
    ) -> None:
        """Every agent reports; those ``behind`` lack three events, the kernels of those ``wrong`` a row."""
        state = self.replica.state
        for node in state.nodes.values():
            self.report(
                node.name,
                state.sequence - (3 if node.name in behind else 0),
                wrong=node.name in wrong,
                gateway=node.name in gateways,
            )

    async def serve_clb(self) -> None:
        """A pair that two of our gateways hold, with three backends of which one is down."""
        await self.send(ReserveClb(reservation="edge", subnet="192.168.8.0/28", provider="gateway"))
        for node in ("vm-1", "vm-5"):
            await self.send(MarkGateway(node=node))
        self.report_all(gateways=("vm-1", "vm-5"))
        await self.ticker.holders()
        for purpose, port, address in (
            ("apiserver", 6443, "192.168.100.11"),
            ("apiserver", 6443, "192.168.100.12"),
            ("public-services", 443, "192.168.100.13"),
        ):
            await self.send(AddBackend(reservation="edge", purpose=purpose, port=port, address=address))
        await self.find_health("192.168.100.12", healthy=False, reason="connection refused")
        self.report_all(gateways=("vm-1", "vm-5"))

    async def find_health(self, address: str, *, healthy: bool, reason: str) -> None:
        """The holder says how its check of a backend went."""
        state = self.replica.state
        key = next(key for key in state.backends if key.address == address)
        holder = next(
            held for held in state.holders.values() if (held.name, held.purpose) == (key.name, key.purpose)
        )
        await self.send(
            ReportHealth(
                node=holder.node,
                uid=holder.uid,
                epoch=holder.epoch,
                reservation=key.name,
                purpose=key.purpose,
                protocol=key.protocol,
                port=key.port,
                address=key.address,
                backend_port=key.backend_port,
                healthy=healthy,
                reason=reason,
            )
        )

    def measure(
        self, *, lost: Collection[str] = (), peers: int = PEERS_MAX, slow: str = "", times: int = 1
    ) -> None:
        """Every agent reports what it measured of the next ones by name; those ``lost`` answer nobody.

        To and from one that is ``slow`` it takes so many times as long.
        """
        state = self.replica.state
        names = sorted(state.owned)
        for at, name in enumerate(names):
            seen = []
            for step in range(1, min(peers, len(names) - 1) + 1):
                of = names[(at + step) % len(names)]
                far = state.nodes[of].site != state.nodes[name].site
                silent = bool({of, name} & set(lost))
                seen.append(
                    PeerSeen(
                        state.owned[of].epoch, SILENT if silent else ANSWERED, 0.5 if silent else 1.0,
                        ((9000 if far else 300) + 7 * step) * (times if slow in {of, name} else 1), 40, 0,
                        -1.0 if silent else 1.0, LARGE_OK,
                    )
                )  # fmt: skip
            self.report(name, state.sequence, mesh=MeshReport(peers=tuple(seen), measured=len(seen)))

    async def lose(self, name: str) -> None:
        """Nobody reaches that node any more, and it is recorded."""
        self.measure(lost=(name,))
        found = [one for one in self.mesh.findings() if one.scope != "view"]
        await self.send(MarkPaths(found=tuple(found), at_s=self.mesh.now()))

    async def restore(self) -> None:
        """Everybody answers everybody, and it is recorded."""
        self.measure()
        await self.send(MarkPaths(over=frozenset(self.replica.state.lost_paths), at_s=self.mesh.now()))

    async def record(self) -> None:
        """Have written down what the agents say now: it is done once a second only."""
        await self.recorder.flush(budget=100_000)

    def drop_listeners(self) -> None:
        """As if the connection had broken: every open stream ends."""
        self.feed.drop()

    def report(
        self,
        name: str,
        applied: int,
        *,
        wrong: bool = False,
        agent_state: Literal["starting", "ready", "degraded", "stopping"] = "ready",
        gateway: bool = False,
        mesh: MeshReport | None = None,
        ways: WaysReport | None = None,
    ) -> None:
        """One agent's report with the digest that its kernel would have; none of an earlier sequence."""
        state = self.replica.state
        node, definition = state.nodes[name], state.definition
        if self._summed_at != state.sequence:
            self._sum, self._summed_at = ClusterSum(), state.sequence
            for owner, owned in state.owned.items():
                self._sum.put(owned.cidr, state.nodes[owner].vtep_mac, state.nodes[owner].announced)
        digest = ""
        if applied == state.sequence and definition is not None:
            owned = state.owned[name]
            digest = self._sum.expected(owned.cidr, node.vtep_mac, definition.vni, definition.vxlan_port)
        self.liveness.observe(
            AgentStatus(
                node=name,
                uid=node.uid,
                applied=applied,
                sent_at=datetime.now(UTC),
                state=agent_state,
                kernel_digest="0" * 64 if wrong else digest,
                drift=("wanted route 172.16.0.64/26 via 172.16.0.64 metric 2886729792",) if wrong else (),
                conditions=("the kernel refused 1 rows",) if agent_state == "degraded" else (),
                peers=len(state.nodes) - 1,
                agent_version="0.1.0",
                gateway=gateway,
                mesh=mesh,
                ways=ways,
                mtu=1450,
                path_mtu=1380 if node.kind == "external" else 1450,
                pods=12,
            ),
            state=state,
        )


def join(number: int) -> JoinNode:
    kind, site = SITES[number % 7 % len(SITES)]
    return JoinNode(
        node=f"{'idc' if kind == 'external' else 'vm'}-{number}",
        uid=f"uid-{number}",
        kind=kind,
        site=site,
        underlay=f"192.168.{100 + number // 250}.{number % 250 + 1}" if number < 30000 else "",
    )


def leave(rig: Rig, number: int) -> LeaveNode:
    command = join(number)
    return LeaveNode(node=command.node, uid=command.uid, reason="maintenance")


@asynccontextmanager
async def running(
    directory: Path, *, token: str = "", port: int = 0, ticking: bool = False
) -> AsyncIterator[Rig]:
    """Everything started, an empty log. With ``ticking`` time brings decisions, as in a real controller."""
    log, liveness = MemoryLog(CLUSTER), Liveness()
    replica = Replica(log)
    async with Observability.open(CLUSTER, "rig", None, environ={}) as observability:
        observer = observability.observer
        projector = Projector(
            directory / "readmodel",
            log,
            replica.changes,
            observer=observer,
            on_projected=replica.dedup.projected,
        )
        committer = Committer(log, replica, source="isthmus/test", observer=observer)
        ticker = Ticker(
            committer, replica, liveness, actor="controller/rig", active=lambda: ticking, tick_s=0.5
        )
        by_hand = Ticker(committer, replica, liveness, actor="controller/rig", active=lambda: True)
        mesh = Collector(lambda: replica.state)
        liveness.listeners.append(mesh.take)
        source = Inspector(
            log,
            replica,
            projector,
            liveness,
            observability,
            mesh=MeshAnswers(mesh, replica),
            leading=lambda: True,
        )
        feed = LiveFeed(source)
        live = LiveNumbers(
            replica,
            projector,
            liveness,
            observability.spans,
            observability.history,
            observability.convergence,
            leading=lambda: True,
            waiting=lambda: committer.statistics()["waiting"],
        )
        tasks = [
            asyncio.create_task(part)
            for part in (
                replica.follow(),
                committer.run(),
                projector.run(),
                ticker.run(),
                watch_members(liveness, replica.changes, lambda: replica.state),
            )
        ]
        try:
            async with (
                observability.following(replica.changes, liveness, live, None),
                serve(source, port=port, token=token, feed=feed) as url,
            ):
                recorder = observability.recorder
                yield Rig(url, committer, replica, liveness, source, feed, by_hand, recorder, mesh)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await projector.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


PACE_S = 3.0
"""Between two joins, for whoever looks at the console."""


async def main(nodes: int) -> None:
    with TemporaryDirectory() as directory:
        async with running(Path(directory), port=7480, ticking=True) as rig:
            await rig.define(nodes)
            await rig.fill(nodes)
            for number in range(2, min(nodes, 60), 17):
                await rig.send(leave(rig, number))
            number = nodes
            print(rig.url, flush=True)
            while True:
                await asyncio.sleep(PACE_S)
                number += 1
                await rig.send(join(number))
                if number % 4 == 0:
                    await rig.send(leave(rig, number - 3))
                behind = tuple(rig.replica.state.nodes)[3:5] if number % 3 else ()
                for offset, node in enumerate(list(rig.replica.state.nodes.values())):
                    if offset % 500 == 0:
                        await asyncio.sleep(0.01)
                    rig.report(node.name, rig.replica.state.sequence - (2 if node.name in behind else 0))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
