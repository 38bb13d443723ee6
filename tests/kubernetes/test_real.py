"""The bridge against a real kube-apiserver, with no more rights than our manifests give it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controlplane.kubernetes import bridge as bridge_module
from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from controlplane.kubernetes.objects import RANGE, STARTUP_TAINT
from tests.kubernetes.manifests import apply, token_of
from tests.kubernetes.real import ASSETS, RealApiServer, serving
from tests.kubernetes.table import Table
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    not ASSETS, reason="KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"
)


async def says(server: RealApiServer, name: str, status: str, reason: str) -> None:
    """Wait until NetworkUnavailable says so."""
    for _ in range(600):
        if await server.network(name) == (status, reason):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name}: {await server.network(name)}")


async def test_a_life_of_nodes_with_the_rights_of_our_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "PAUSE_LONGEST_S", 0.5)
    async with serving(tmp_path) as server:
        await apply(server)
        kubeconfig = server.kubeconfig(await token_of(server, "isthmus-controller"))
        table = Table()
        client = await KubernetesClient.open(kubeconfig)
        bridge = Bridge(client, table, instance="c1", fence_deleted_s=0.05)
        running = asyncio.create_task(bridge.run())
        try:
            await bridge.synced.wait()
            await server.add("n1", taints=[{"key": STARTUP_TAINT, "effect": "NoSchedule"}])
            await says(server, "n1", "True", "IsthmusNoRange")
            table.say("n1", 0)
            await says(server, "n1", "False", "IsthmusIsUp")
            await until(lambda: "n1" in table.nodes)
            for _ in range(600):
                node = await server.node("n1")
                if not any(t["key"] == STARTUP_TAINT for t in node["spec"].get("taints", [])):
                    break
                await asyncio.sleep(0.05)
            assert node["spec"]["podCIDRs"] == ["10.200.0.0/26"]
            assert node["metadata"]["annotations"][RANGE] == "10.200.0.0/26"

            # Two Nodes with one podCIDR: the one whose range it is not says so, and keeps pods away.
            await server.add("n2", podCIDR="10.200.0.0/26", podCIDRs=["10.200.0.0/26"])
            table.say("n2", 1)
            await says(server, "n2", "True", "IsthmusRangeConflict")
            assert (await server.node("n2"))["spec"]["podCIDR"] == "10.200.0.0/26"
            events: list[dict[str, Any]] = []
            for _ in range(600):
                found = (await server.ask("GET", "/apis/events.k8s.io/v1/events"))[1]["items"]
                events = [each for each in found if each.get("reportingController") == "isthmus.io/controller"]
                if events:
                    break
                await asyncio.sleep(0.05)
            assert {each["reason"] for each in events} == {"IsthmusRangeConflict"}
            assert "n1" in events[0]["note"]

            # Its way out: delete the Node; made anew, it gets its range.
            await server.ask("DELETE", "/api/v1/nodes/n2")
            await server.add("n2")
            await says(server, "n2", "False", "IsthmusIsUp")
            assert (await server.node("n2"))["spec"]["podCIDR"] == "10.200.0.64/26"
            await until(lambda: "n2" in table.nodes)

            # The API server dies; what changed meanwhile follows, a deletion with it.
            server.kill()
            await until(lambda: bool(bridge.problem))
            table.say("n3", 2)
            server.start()
            await server.ready()
            await server.add("n3")
            await says(server, "n3", "False", "IsthmusIsUp")
            await server.ask("DELETE", "/api/v1/nodes/n1")
            table.say("n1", 0, "silent")
            await until(lambda: table.fenced == ["n1"])
        finally:
            running.cancel()
            await asyncio.wait({running})
            await client.close()
