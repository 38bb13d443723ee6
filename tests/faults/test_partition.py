"""The cable of each of three servers is pulled in turn, under load: nothing acknowledged is lost.

Runs in network and mount namespaces of its own: every server in one, joined by a bridge; a cable is
pulled by taking a link down, so that no packet and no reset gets through.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.bus, pytest.mark.netns, pytest.mark.slow]

PROGRAM = r"""
import asyncio, contextlib, json, subprocess, sys
from pathlib import Path

from nats.errors import Error as NatsError

from events.bus.server import process as server_module
from events.bus.connection import BusOptions, connect
from events.errors import OutcomeUnknown, Unavailable
from events.jetstream.log import JetStreamLog
from events.jetstream.live import LiveReader
from events.bus.server.process import EmbeddedServer, find_binary
from events.bus.server.config import ClusterMember, ServerOptions
from tests.contract.samples import CLUSTER, everything, sealed, verified
from tests.events.following import Following

directory = Path(sys.argv[1])


def sh(line):
    subprocess.run(line, shell=True, check=True)


def build():
    # names of network namespaces are mounts: a private /run keeps them in here
    sh("mount -t tmpfs tmpfs /run && ip link set lo up")
    # The servers' addresses are in namespaces of their own; the caller looks here whether it may listen there.
    sh("sysctl -qw net.ipv4.ip_nonlocal_bind=1")
    sh("ip link add lan type bridge && ip address add 10.99.0.254/24 dev lan && ip link set lan up")
    for n in (1, 2, 3):
        sh(f"ip netns add s{n} && ip link add cable{n} type veth peer name eth0 netns s{n}")
        sh(f"ip link set cable{n} master lan up")
        sh(f"ip -n s{n} link set lo up && ip -n s{n} link set eth0 up")
        sh(f"ip -n s{n} address add 10.99.0.{n}/24 dev eth0")


def binary_in(n):
    real, wrapper = find_binary(), directory / f"server-in-s{n}"
    wrapper.write_text(f"#!/bin/sh\nexec ip netns exec s{n} {real} \"$@\"\n")
    wrapper.chmod(0o755)
    return wrapper


async def main():
    build()
    routes = tuple(f"10.99.0.{n}:6222" for n in (1, 2, 3))
    servers = []
    for n in (1, 2, 3):
        wrapper = binary_in(n)
        server_module.find_binary = lambda wrapper=wrapper: wrapper
        server = EmbeddedServer(ServerOptions(
            store_dir=directory / f"s{n}", host=f"10.99.0.{n}", port=4222, name=f"s{n}",
            member=ClusterMember(cluster="isthmus", port=6222, routes=routes),
            # what deploy/nats sets for real networks, shortened: a silent peer is noticed
            extra='ping_interval: "1s"\nping_max: 2\n',
        ))
        await server.start()
        servers.append(server)
    client = await connect(BusOptions(servers=tuple(s.url for s in servers)), name="partition")
    log = await JetStreamLog.open(client, CLUSTER, create=True, replicas=3)
    follower = Following(LiveReader(client, CLUSTER, check_s=1.0))
    acknowledged, unknown, stop = [await log.head()], 0, asyncio.Event()

    async def load():
        nonlocal unknown
        head, number = acknowledged[0], 0
        while not stop.is_set():
            number += 1
            messages, after = sealed(head, 1 + number % 3)
            while True:
                try:
                    await log.append(messages, expected=head.sequence, timeout_s=5)
                except (OutcomeUnknown, Unavailable):
                    unknown += 1
                    continue
                break
            acknowledged.append(after)
            head = after

    loading = asyncio.create_task(load())
    loop = asyncio.get_running_loop()
    stalls = []
    for n in (1, 2, 3):
        before = len(acknowledged)
        sh(f"ip link set cable{n} down")
        began = loop.time()
        while len(acknowledged) < before + 30:  # the other two go on
            assert not loading.done(), loading.result()
            assert loop.time() < began + 45, f"nothing was stored with cable {n} out"
            await asyncio.sleep(0.01)
        stalls.append(round(loop.time() - began, 2))
        sh(f"ip link set cable{n} up")
        # what was cut off has to be back before the next one goes, or there is no majority
        while True:
            with contextlib.suppress(NatsError):  # whoever leads may have just lost the connection
                info = await client.jetstream().stream_info(f"ISTHMUS_{CLUSTER}")
                replicas = info.cluster.replicas or []
                if info.cluster.leader and len(replicas) == 2 and all(r.current for r in replicas):
                    break
            assert loop.time() < began + 80, f"server {n} did not come back"
            await asyncio.sleep(0.1)
    stop.set()
    await asyncio.wait_for(loading, 60)
    stored = await everything(log)
    end = verified(stored)
    await follower.reaches(end.sequence, within_s=30)
    print(json.dumps({
        "acknowledged": len(acknowledged) - 1,
        "unknown": unknown,
        "stalls_s": stalls,
        "whole": end == acknowledged[-1],
        "followed": follower.head == end and follower.seen == list(range(1, end.sequence + 1)),
    }))
    await follower.end()
    await client.close()
    await asyncio.gather(*(server.stop() for server in servers))


asyncio.run(main())
"""


def test_a_pulled_cable_loses_nothing_and_the_other_two_go_on(tmp_path: Path) -> None:
    namespaces = ["unshare", "-nm"] if os.geteuid() == 0 else ["unshare", "-Urnm"]
    done = subprocess.run(
        [*namespaces, sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["acknowledged"] >= 90
    assert found["whole"], found
    assert found["followed"], found
    assert max(found["stalls_s"]) < 45, found
