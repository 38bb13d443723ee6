"""The shipped server configurations, started for real: single, three servers, a site with a mirror."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client

from deploy.nats.mirrors import make_mirrors, mirror_states, wait_caught_up
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import Unavailable
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from events.jetstream.snapshots import SnapshotBucket
from tests.contract.samples import CLUSTER, everything, fill, verified
from tests.events.following import Following
from tests.events.sample_snapshot import snapshot
from tests.ports import free_ports
from tests.waiting import until

pytestmark = pytest.mark.bus

SHIPPED = Path(__file__).parents[2] / "deploy" / "nats"


def shipped(name: str, store: Path, **values: str) -> EmbeddedServer:
    environment = {
        "ISTHMUS_SERVER_NAME": store.name,
        "ISTHMUS_LISTEN": f"127.0.0.1:{free_ports(1)[0]}",
        "ISTHMUS_LEAF_LISTEN": "127.0.0.1:-1",
        "ISTHMUS_MONITOR": "127.0.0.1:-1",
        "ISTHMUS_STORE": str(store),
        **values,
    }
    return EmbeddedServer(
        ServerOptions(store_dir=store), config=SHIPPED / f"{name}.conf", environment=environment
    )


@asynccontextmanager
async def connected(*servers: EmbeddedServer) -> AsyncIterator[Client]:
    client = await connect(BusOptions(servers=tuple(server.url for server in servers)), name="test")
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("name", ["single", "cluster", "site"])
def test_each_file_uses_exactly_the_variables_of_its_example_and_syncs_always(name: str) -> None:
    text = re.sub(r"#.*", "", (SHIPPED / f"{name}.conf").read_text())
    example = (SHIPPED / f"{name}.env").read_text()
    assert set(re.findall(r"\$(ISTHMUS_\w+)", text)) == set(
        re.findall(r"^(ISTHMUS_\w+)=", example, re.MULTILINE)
    )
    assert "sync_interval: always" in text


def jetstream_syncs_always(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/varz", timeout=30) as answer:
        return bool(json.load(answer)["jetstream"]["config"]["sync_always"])


async def test_the_single_server_acknowledges_only_what_is_on_disk(tmp_path: Path) -> None:
    async with shipped("single", tmp_path / "hub") as server, connected(server) as client:
        ports = json.loads(next((tmp_path / "hub").glob("*.ports")).read_text())
        assert await asyncio.to_thread(jetstream_syncs_always, ports["monitoring"][0])
        log = await JetStreamLog.open(client, CLUSTER, create=True)
        head = await fill(log, 1200)
        assert verified(await everything(log)) == head


async def test_three_shipped_servers_keep_the_log_when_one_is_killed(tmp_path: Path) -> None:
    routes = free_ports(3)
    listed = json.dumps([f"nats-route://127.0.0.1:{port}" for port in routes])
    servers = [
        shipped(
            "cluster", tmp_path / f"bus-{n}", ISTHMUS_CLUSTER_LISTEN=f"127.0.0.1:{port}", ISTHMUS_ROUTES=listed
        )
        for n, port in enumerate(routes)
    ]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        async with connected(*servers) as client:
            log = await JetStreamLog.open(client, CLUSTER, create=True, replicas=3)
            head = await fill(log, 100)
            servers[0].signal(signal.SIGKILL)
            head = await fill(log, 100)
            assert verified(await everything(log)) == head
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_a_site_reads_on_while_the_hub_is_away_and_catches_up_when_it_returns(tmp_path: Path) -> None:
    (leaf_port,) = free_ports(1)
    hub = shipped("single", tmp_path / "hub", ISTHMUS_LEAF_LISTEN=f"127.0.0.1:{leaf_port}")
    site = shipped(
        "site",
        tmp_path / "idc",
        ISTHMUS_SITE="idc",
        ISTHMUS_HUB=f'[{{url: "nats-leaf://127.0.0.1:{leaf_port}"}}]',
    )
    async with hub, site, connected(hub) as at_hub, connected(site) as at_site:
        log = await JetStreamLog.open(at_hub, CLUSTER, create=True)
        bucket = SnapshotBucket(at_hub, CLUSTER)
        await bucket.ensure()
        head = await fill(log, 700)
        made = snapshot(head, 3000)
        await bucket.publish(made)

        await make_mirrors(at_site, CLUSTER, hub_domain="hub")
        await make_mirrors(at_site, CLUSTER, hub_domain="hub")  # again: only checks
        states = await wait_caught_up(at_site, CLUSTER, timeout_s=20)
        assert [(state.lag, state.error) for state in states] == [(0, ""), (0, "")]

        # an agent at the site follows live through the leaf connection
        agent = Following(LiveReader(at_site, CLUSTER, check_s=0.5))
        await agent.reaches(700)
        head = await fill(log, 5)
        await agent.reaches(705)
        await wait_caught_up(at_site, CLUSTER, timeout_s=20)

        await hub.stop()
        # another agent of the site starts meanwhile: snapshot and log are here
        assert await SnapshotBucket(at_site, CLUSTER).latest() == made
        assert verified(await everything(LiveReader(at_site, CLUSTER))) == head
        assert verified(await everything(JetStreamLog(at_site, CLUSTER))) == head
        with pytest.raises(Unavailable):
            await JetStreamLog(at_site, CLUSTER, prefix="$JS.hub.API", patience_s=0.5).head()

        await hub.start()
        await until(lambda: at_hub.is_connected)
        head = await fill(log, 20)
        await agent.reaches(725, within_s=40)
        assert agent.head == head
        assert agent.seen == list(range(1, 726))

        async def mirrored() -> bool:
            return (await mirror_states(at_site, CLUSTER))[0].sequence == 725

        await until(mirrored, within_s=40)
        assert verified(await everything(JetStreamLog(at_site, CLUSTER))) == head
        await agent.end()


async def test_a_site_without_mirrors_says_what_to_do(tmp_path: Path) -> None:
    async with shipped("single", tmp_path / "hub") as hub, connected(hub) as client:
        states = await mirror_states(client, CLUSTER)
        assert [state.exists for state in states] == [False, False]
        assert "isthmus site init" in states[0].error
        with pytest.raises(Unavailable, match="not level with the hub"):
            await wait_caught_up(client, CLUSTER, timeout_s=0.2)
