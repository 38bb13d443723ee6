"""A full disk under the bus: commands are refused in time, nothing acknowledged is lost, room brings it back.

Runs in a mount namespace of its own (as root, or as a user in a user namespace), on a small tmpfs
that vanishes with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import patient

pytestmark = [pytest.mark.bus, pytest.mark.slow]

PROGRAM = r"""
import asyncio, json, os, subprocess, sys
from pathlib import Path

store = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(store)], check=True)

from events.bus.server import process as server_module
from events.bus.connection import BusOptions, connect
from events.errors import IsthmusError, OutcomeUnknown, Unavailable
from events.jetstream.log import JetStreamLog
from events.bus.server.process import EmbeddedServer
from events.bus.server.config import ServerOptions
from tests.contract.samples import CLUSTER, everything, sealed, verified

server_module.RESTARTS_MAX = 10**6


async def main():
    async with EmbeddedServer(ServerOptions(store_dir=store / "bus")) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="disk")
        log = await JetStreamLog.open(client, CLUSTER, create=True)
        head, acknowledged, failure, longest_s = await log.head(), [], None, 0.0
        ballast = store / "ballast"
        loop = asyncio.get_running_loop()
        for number in range(10_000):
            if number == 5:
                free = os.statvfs(store)
                ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 2 * 1024 * 1024)))
            messages, after = sealed(head, 40)
            began = loop.time()
            try:
                await log.append(messages, expected=head.sequence, timeout_s=3)
            except Unavailable as error:
                failure, longest_s = error.code, loop.time() - began
                break
            acknowledged.append((after.sequence, after.hex))
            head = after
        ballast.unlink()
        await server.stop()  # an operator makes room and starts the server again
        await server.start()
        resumed = None
        for _ in range(20):
            try:
                resumed = await log.append(messages, expected=head.sequence, timeout_s=3)
                break
            except (OutcomeUnknown, Unavailable):
                continue
        stored = await everything(log)
        end = verified(stored)
        chains = {m.sequence: m.headers["ce-chain"] for m in stored}
        print(json.dumps({
            "appended": len(acknowledged),
            "failure": failure,
            "longest_s": longest_s,
            "resumed": resumed,
            "expected": after.sequence,
            "end": end.sequence,
            "lost": [sequence for sequence, digest in acknowledged if chains.get(sequence) != digest],
        }))
        await client.close()


asyncio.run(main())
"""


def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    done = subprocess.run(
        [*namespace, sys.executable, "-c", PROGRAM, str(store)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["appended"] >= 5
    assert found["failure"] in {"log_unavailable", "outcome_unknown", "bus_unreachable"}
    assert found["longest_s"] < patient(4)
    assert found["lost"] == []
    assert found["resumed"] == found["expected"] == found["end"]
    assert list(store.iterdir()) == [], "the small disk was private to the test"
