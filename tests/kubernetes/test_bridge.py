"""The bridge against an API server that answers as Kubernetes does: what Nodes say in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane.kubernetes import api as api_module
from controlplane.kubernetes import bridge as bridge_module
from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from controlplane.kubernetes.objects import RANGE, STARTUP_TAINT
from events.errors import Refused
from tests.kubernetes.apiserver import ApiServer
from tests.kubernetes.table import Table
from tests.waiting import until


@asynccontextmanager
async def bridged(folder: Path, server: ApiServer, table: Table, **options: Any) -> AsyncIterator[Bridge]:
    async with server.serving(folder) as kubeconfig:
        client = await KubernetesClient.open(kubeconfig)
        bridge = Bridge(client, table, instance="c1", **options)
        running = asyncio.create_task(bridge.run())
        try:
            yield bridge
            assert not running.done(), running.exception()
        finally:
            running.cancel()
            await asyncio.wait({running})
            await client.close()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at a test's pace; how long they take is no property of the bridge."""
    monkeypatch.setattr(bridge_module, "PAUSE_FIRST_S", 0.02)
    monkeypatch.setattr(bridge_module, "PAUSE_LONGEST_S", 0.1)


async def test_nodes_get_their_ranges_and_let_pods_in_once_their_agents_are_ready(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    server.add(
        "n1", taints=[{"key": STARTUP_TAINT, "effect": "NoSchedule"}, {"key": "other", "effect": "NoExecute"}]
    )
    async with bridged(tmp_path, server, table):
        await until(lambda: server.network("n1") == ("True", "IsthmusNoRange"))
        table.say("n1", 0, "never heard")
        await until(lambda: server.network("n1") == ("True", "IsthmusAgentNotReady"))
        assert server.nodes["n1"]["spec"]["podCIDR"] == "10.200.0.0/26"
        table.say("n1", 0)
        await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))
        await until(lambda: [taint["key"] for taint in server.nodes["n1"]["spec"]["taints"]] == ["other"])
        server.add("n2")
        table.say("n2", 1)
        await until(lambda: server.network("n2") == ("False", "IsthmusIsUp"))
        assert server.nodes["n2"]["spec"]["podCIDRs"] == ["10.200.0.64/26"]
        assert server.nodes["n2"]["metadata"]["annotations"][RANGE] == "10.200.0.64/26"
        assert [each["type"] for each in server.nodes["n2"]["status"]["conditions"]] == [
            "Ready",
            "NetworkUnavailable",
        ]
        table.say("n1", 0, "silent")
        table.remove("n2")
        await until(lambda: server.network("n2") == ("True", "IsthmusNoRange"))
        assert server.network("n1") == ("False", "IsthmusIsUp")


async def test_a_foreign_pod_cidr_stays_and_is_told_once(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    server.add("n1", podCIDR="10.200.0.64/26", podCIDRs=["10.200.0.64/26"])
    table.say("n1", 0)
    table.say("n2", 1)
    async with bridged(tmp_path, server, table) as bridge:
        await until(lambda: server.events)
        for _ in range(20):
            bridge.mark_all()
            table.say("n1", 0)
            server.heartbeat("n1")
        server.add("n3")
        table.say("n3", 2)
        await until(lambda: server.network("n3") == ("False", "IsthmusIsUp"))
        assert server.network("n1") == ("True", "IsthmusRangeConflict")
        assert server.nodes["n1"]["spec"]["podCIDR"] == "10.200.0.64/26"
        (event,) = server.events
        assert "n2" in event["note"]
        assert event["regarding"] == {"kind": "Node", "name": "n1", "uid": "n1"}


async def test_a_node_made_anew_under_its_name_gets_its_range_again(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    server.add("n1")
    table.say("n1", 0)
    async with bridged(tmp_path, server, table):
        await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))
        server.delete("n1")
        server.add("n1")
        await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))
        assert server.nodes["n1"]["spec"]["podCIDR"] == "10.200.0.0/26"


async def test_what_was_missed_while_a_watch_was_broken_or_expired_is_found(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    async with bridged(tmp_path, server, table) as bridge:
        await bridge.synced.wait()
        for number in range(4):
            server.add(f"n{number}")
            table.say(f"n{number}", number)
            if number % 2:
                server.compact()
            else:
                server.cut()
        await until(lambda: all(server.network(f"n{n}") == ("False", "IsthmusIsUp") for n in range(4)))
        server.delete("n0")
        server.compact()
        await until(lambda: "n0" not in bridge.nodes)


async def test_an_api_server_that_is_away_or_refuses_is_waited_for_and_named(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    server.add("n1")
    table.say("n1", 0)
    server.broken = True
    async with bridged(tmp_path, server, table) as bridge:
        await until(lambda: "etcd is away" in bridge.problem)
        server.broken, server.forbidden = False, {"PATCH"}
        await until(lambda: "rbac.yaml" in bridge.problem)
        assert server.network("n1") is None
        server.forbidden = set()
        await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))


async def test_who_is_deleted_and_silent_is_fenced_and_nobody_else(tmp_path: Path) -> None:
    """n0: deleted, silent; n1: deleted, alive; n2: silent; n3: deleted, back again; n4: as n0, unseen."""
    server, table = ApiServer(), Table()
    for number in range(5):
        server.add(f"n{number}")
        table.say(f"n{number}", number)
    async with bridged(tmp_path, server, table, fence_deleted_s=0.05) as bridge:
        await until(lambda: all(server.network(name) == ("False", "IsthmusIsUp") for name in server.nodes))
        await until(lambda: len(table.nodes) == 5)
        for name in ("n0", "n1", "n3"):
            server.delete(name)
        server.add("n3")
        server.delete("n4")
        server.compact()  # this deletion is seen only by listing anew
        await until(lambda: sorted(bridge.nodes) == ["n2", "n3"])
        for number in (0, 2, 3, 4):
            table.say(f"n{number}", number, "silent")
        await until(lambda: len(table.fenced) == 2)
        server.add("last")
        await until(lambda: server.network("last") is not None)
        assert sorted(table.fenced) == ["n0", "n4"]


async def test_only_a_leader_writes(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    server.add("n1")
    table.say("n1", 0)
    table.leading = False
    async with bridged(tmp_path, server, table) as bridge:
        await bridge.synced.wait()
        server.heartbeat("n1")
        await until(lambda: bridge.nodes["n1"].metadata.resource_version == "2")
        assert server.patches == []
        table.leading = True
        await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))


async def test_many_nodes_come_in_pages_and_heartbeats_cause_no_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, table = ApiServer(), Table()
    monkeypatch.setattr(api_module, "PAGE", 40)
    count = 83
    for number in range(count):
        server.add(f"n{number}")
        table.say(f"n{number}", number)
    async with bridged(tmp_path, server, table) as bridge:
        await until(lambda: all(server.network(name) == ("False", "IsthmusIsUp") for name in server.nodes))
        await until(lambda: all(node.network is not None for node in bridge.nodes.values()))
        assert len({node["spec"]["podCIDR"] for node in server.nodes.values()}) == count
        before = len(server.patches)
        for name in list(server.nodes)[:200]:
            server.heartbeat(name)
        last = server.add("last")
        await until(lambda: "last" in bridge.nodes)
        await until(lambda: server.network("last") is not None)
        assert {path for path, _, _ in server.patches[before:]} == {
            f"/api/v1/nodes/{last['metadata']['name']}/status"
        }


async def test_without_access_it_says_what_is_missing(tmp_path: Path) -> None:
    for text in ("", "not: [valid", "apiVersion: v1\nkind: Config\n"):
        file = tmp_path / "kubeconfig"
        file.write_text(text)
        with pytest.raises(Refused) as refused:
            await KubernetesClient.open(file)
        assert refused.value.code == "kubernetes_config"
    with pytest.raises(Refused) as refused:
        await KubernetesClient.open()
    assert "--kubeconfig" in refused.value.message


async def test_a_deletion_while_no_bridge_ran_is_known_at_the_next_list(tmp_path: Path) -> None:
    """n0: deleted meanwhile; n1: deleted and made anew; n2: there all along; n3: never bound."""
    server, table = ApiServer(), Table()
    for number in range(3):
        server.add(f"n{number}")
        table.say(f"n{number}", number)
    table.say("n3", 3)
    async with bridged(tmp_path, server, table):
        await until(lambda: len(table.nodes) == 3)
    before = dict(table.nodes)
    server.delete("n0")
    server.delete("n1")
    server.add("n1")
    for number in range(4):
        table.say(f"n{number}", number, "silent")
    async with bridged(tmp_path, server, table, fence_deleted_s=0.05):
        await until(lambda: table.nodes.get("n1") not in {None, before["n1"]})
        await until(lambda: table.fenced == ["n0"])
        assert table.nodes["n2"] == before["n2"]
        assert "n3" in table.members


async def test_the_list_of_another_cluster_makes_nobody_count_as_deleted(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    for number in range(2):
        table.say(f"n{number}", number, "silent")
        table.nodes[f"n{number}"] = f"elsewhere-{number}"
    server.add("other")
    async with bridged(tmp_path, server, table, fence_deleted_s=0.01) as bridge:
        await until(lambda: "--kubeconfig" in bridge.problem)
        server.add("last")
        await until(lambda: server.network("last") is not None)
        assert table.fenced == []


async def test_renamed_foreign_and_overcommitted_nodes_are_told_by_events(tmp_path: Path) -> None:
    server, table = ApiServer(), Table()
    table.say("n0", 0)
    table.members["n0"] = msgspec.structs.replace(table.members["n0"], uid="a" * 32)
    server.add("n0")
    server.nodes["n0"]["status"]["nodeInfo"] = {"machineID": "b" * 32, "systemUUID": ""}
    server.add("new-name")
    table.refused["new-name"] = "uid 'x' of node 'new-name' is already the live node 'old-name'"
    server.add("n1")
    server.nodes["n1"]["status"]["capacity"] = {"pods": "110"}
    table.say("n1", 1)
    async with bridged(tmp_path, server, table):
        await until(lambda: len(server.events) == 3)
        await until(lambda: "n1" in table.nodes)
        notes = {each["regarding"]["name"]: (each["reason"], each["note"]) for each in server.events}
        assert server.network("n0") == ("True", "IsthmusRangeConflict")
        assert "podCIDR" not in server.nodes["n0"]["spec"]
        assert "n0" not in table.nodes  # another machine: not the member
        assert "b" * 32 in notes["n0"][1]
        assert notes["new-name"][0] == "IsthmusNoRange"
        assert "old-name" in notes["new-name"][1]
        assert notes["n1"][0] == "IsthmusMaxPods"
        assert "110" in notes["n1"][1]
        assert "61" in notes["n1"][1]
        assert server.network("n1") == ("False", "IsthmusIsUp")


async def test_pods_of_an_earlier_range_are_told_of_and_evicted_only_where_asked(tmp_path: Path) -> None:
    """Of n0's former range: two, one behind a budget, a static one; others: of the host's network, its own."""
    server, table = ApiServer(), Table()
    server.add("n0")
    server.add("n1")
    table.say("n0", 0)
    table.say("n1", 1)
    server.add_pod("old", "n0", "10.200.9.2")
    server.add_pod("guarded", "n0", "10.200.9.3")
    server.guarded = {"guarded"}
    server.add_pod("own", "n0", "10.200.0.5")
    server.add_pod("host", "n0", "10.200.9.1", hostNetwork=True)
    server.add_pod("static", "n0", "10.200.9.4")
    server.add_pod("elsewhere", "n1", "10.200.9.6")
    next(pod for pod in server.pods.values() if pod["metadata"]["name"] == "static")["metadata"][
        "annotations"
    ] = {"kubernetes.io/config.mirror": "x"}

    def left() -> set[str]:
        return {pod["metadata"]["name"] for pod in server.pods.values()}

    everybody = left()
    async with bridged(tmp_path, server, table):
        table.strand("n0", "10.200.9.0/26")
        await until(lambda: server.events)
        await until(lambda: all(server.network(name) == ("False", "IsthmusIsUp") for name in ("n0", "n1")))
        (event,) = server.events
        assert event["reason"] == "IsthmusStalePods"
        assert "10.200.9.0/26" in event["note"]
        assert "--evict-stale-pods" in event["note"]
        assert left() == everybody
    async with bridged(tmp_path, server, table, evict_stale_pods=True) as bridge:
        await until(lambda: "disruption budget" in bridge.problem)
        assert left() == everybody - {"old"}
        server.guarded = set()
        await until(lambda: left() == everybody - {"old", "guarded"})
        await until(lambda: bridge.evicted == 2)
        table.strand("n0")
        server.add_pod("new", "n0", "10.200.9.7")
        server.add("last")
        await until(lambda: server.network("last") is not None)
        assert "new" in left()
