"""The import of a real cluster's Nodes beside living agents: nobody is fenced who was not named."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events import subjects
from events.bus.connection import BusOptions, connect
from events.status import AgentStatus
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus

ISTHMUS = str(Path(sys.executable).with_name("isthmus"))


def node(number: int) -> dict[str, Any]:
    """As Kubernetes describes the machine of ``join(number)``: by its machine id."""
    return {
        "kind": "Node",
        "metadata": {"name": f"n{number}", "labels": {"topology.kubernetes.io/region": "gz"}},
        "spec": {"providerID": "qcloud:///1/ins-1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"192.168.0.{number + 1}"}],
            "nodeInfo": {"machineID": f"{number:032x}"[::-1] + ("a" if not number else "")},
        },
    }


async def isthmus(bus: BusOptions, document: object, *options: str) -> tuple[int, dict[str, Any]]:
    command = [
        ISTHMUS,
        "node",
        "import",
        "-",
        "--json",
        "--bus",
        bus.servers[0],
        "--cluster",
        CLUSTER,
        *options,
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        input=json.dumps(document).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"internal" not in done.stderr
    return done.returncode, json.loads(done.stdout or done.stderr)


async def test_an_import_beside_living_agents_fences_nobody_unless_named(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        for number in (1, 2):
            await operator.send(join(number))
        agent = await connect(bus, name="agent")
        report = AgentStatus(node="n1", uid="uid-1", applied=2, sent_at=datetime.now(UTC))
        await agent.publish(subjects.status(CLUSTER, "n1"), msgspec.json.encode(report))
        await agent.close()
        await until(lambda: "uid-1" in running.liveness.statuses)
        listed = {"kind": "List", "items": [node(1), node(2), node(3)]}

        code, shown = await isthmus(bus, listed, "--dry-run")
        assert (code, shown["joined"], shown["refused"], shown["fenced"]) == (1, 2, 1, 1)
        assert [line.get("fences") for line in shown["lines"]][1:] == ["uid-2", None]
        assert "--replace n1" in shown["lines"][0]["message"]
        assert set(running.replica.state.by_uid) == {"uid-1", "uid-2"}, "nothing was written"

        code, done = await isthmus(bus, listed)
        assert (code, done["joined"], done["refused"]) == (1, 2, 1)
        assert "uid-1" in running.replica.state.by_uid
        assert "uid-1" not in running.replica.state.fenced

        code, again = await isthmus(bus, listed, "--replace", "n1")
        assert (code, again["joined"], again["unchanged"], again["fenced"]) == (0, 1, 2, 1)
        assert "uid-1" in running.replica.state.fenced

        code, single = await isthmus(bus, node(3))
        assert (code, single["unchanged"]) == (0, 1)
        moved = node(3)
        moved["metadata"]["labels"] = {"topology.kubernetes.io/region": "sz"}
        code, changed = await isthmus(bus, {"items": [moved, node(4)]})
        assert (code, changed["joined"], changed["unchanged"]) == (0, 1, 1)
        assert "site 'sz'" in changed["lines"][0]["note"]


async def test_what_is_wrong_with_one_node_keeps_no_other_from_joining(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        await operator.send(join(7))
        bad, taken = node(5), node(6)
        bad["status"]["addresses"] = [{"type": "Hostname", "address": "n5"}]
        taken["status"]["addresses"] = [{"type": "InternalIP", "address": "192.168.0.8"}]  # that of n7
        code, report = await isthmus(bus, {"items": [bad, taken, node(8)]})
        assert (code, report["joined"], report["refused"]) == (1, 1, 2)
        assert [line.get("code") for line in report["lines"]] == [
            "import_unreadable", "underlay_address_in_use", None,
        ]  # fmt: skip
        assert set(running.replica.state.nodes) == {"n7", "n8"}
        code, none = await isthmus(bus, {"items": [bad, node(9)]}, "--all-or-none")
        assert (code, none["error"]["code"]) == (1, "import_unreadable")
        assert "n9" not in running.replica.state.nodes
