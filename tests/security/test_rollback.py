"""Events are left out of the log by who may write them, and by nobody else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from events.codec import Cause, seal
from events.jetstream.log import JetStreamLog
from tests.controlplane.world import START, World
from tests.security.conftest import CLUSTER, Site, stored

pytestmark = pytest.mark.bus
ISTHMUS = str(Path(sys.executable).with_name("isthmus"))


async def test_a_rollback_is_prepared_by_a_controllers_credentials_only(site: Site) -> None:
    control = await site.controller()
    log = JetStreamLog(control, CLUSTER)
    cause = Cause(command_id="c", actor="test", time=START, source="test")
    at = World(container_cidr="10.200.0.0/22", pods_per_node=64)
    at.join(0, node_key=b64encode(bytes(range(32))).decode())
    messages, _ = seal(CLUSTER, await log.head(), [(cause, at.log)])
    await log.append(messages, expected=0)

    async def prepare(credentials: Path) -> subprocess.CompletedProcess[str]:
        words = ["cluster", "prepare-rollback", "--yes", "--bus", site.server.url, "--cluster", CLUSTER]
        line = [ISTHMUS, *words, "--creds", str(credentials), "--ca", str(site.files.ca)]
        return await asyncio.to_thread(
            subprocess.run, line, capture_output=True, text=True, check=False, timeout=60
        )

    refused = await prepare(site.files.operator)
    assert (refused.returncode, await stored(control)) == (1, len(messages)), refused.stderr
    assert "these credentials may not write events" in refused.stderr
    done = await prepare(site.files.controllers[0])
    assert done.returncode == 0, done.stderr
    assert await stored(control) > len(messages)
