"""Rows of the table of cases, one after another, on a real API server, a real bus and a real controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.controller.controller import Controller
from controlplane.kubernetes import endpoints
from controlplane.kubernetes.objects import RANGE, UID
from events.protocol.commands import FenceNode, JoinNode, RemoveNode, ReserveClb
from tests.kubernetes.cluster import Cluster, refused, started
from tests.kubernetes.manifests import apply, token_of
from tests.kubernetes.real import ASSETS, CONTROLLER_MANAGER, RealApiServer
from tests.waiting import until

pytestmark = [
    pytest.mark.bus,
    pytest.mark.skipif(not ASSETS, reason="KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"),
]
UNREACHABLE = "node.kubernetes.io/network-unavailable"
A, B = "a" * 32, "b" * 32


async def least(api: RealApiServer) -> Path:
    """Access with the rights of rbac.yaml, and no more."""
    await apply(api)
    return api.kubeconfig(await token_of(api, "isthmus-controller"))


async def machine(cluster: Cluster, name: str, machine_id: str) -> None:
    """The kubelet says which machine it runs on."""
    info = {"machineID": machine_id, "systemUUID": ""}
    zero = dict.fromkeys(
        ("architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion",
         "kubeletVersion", "operatingSystem", "osImage"), "",
    )  # fmt: skip
    code, said = await cluster.api.ask(
        "PATCH", f"/api/v1/nodes/{name}/status", {"status": {"nodeInfo": {**zero, **info}}},
        kind="application/strategic-merge-patch+json",
    )  # fmt: skip
    assert code == 200, said


async def test_the_table_of_cases(tmp_path: Path) -> None:
    async with started(tmp_path, least, fence_deleted_s=0.5) as cluster:
        api, agents, operator = cluster.api, cluster.agents, cluster.operator
        ranges = {
            f"n{number}": await agents.join(f"n{number}", f"uid-{number}", number + 1) for number in range(5)
        }
        for name in ranges:
            await api.add(name)
        for name, cidr in ranges.items():
            await cluster.says(name, "False", "IsthmusIsUp")
            node = await api.node(name)
            assert (node["spec"]["podCIDRs"], node["metadata"]["annotations"][RANGE]) == ([cidr], cidr)
            await until(lambda name=name: name in cluster.state.bound)
            assert cluster.state.bound[name].node_uid == node["metadata"]["uid"]

        # An operator removes a member; its agent joins again and has another range than the Node says.
        del agents.alive["n0"]
        await operator.send(RemoveNode(node="n0"))
        await cluster.says("n0", "True", "IsthmusNoRange")
        assert await cluster.pod_cidr("n0") == ranges["n0"]
        again = await agents.join("n0", "uid-9", 1)
        assert again != ranges["n0"]
        await cluster.says("n0", "True", "IsthmusRangeConflict")
        assert "kubectl delete node n0" in await cluster.told("n0", "IsthmusRangeConflict")
        # The way out that it names.
        await api.ask("DELETE", "/api/v1/nodes/n0")
        await api.add("n0")
        await cluster.says("n0", "False", "IsthmusIsUp")
        assert await cluster.pod_cidr("n0") == again

        # Preset: foreign, and that of another member (the API server takes both).
        for name, number, preset in (("p0", 20, "192.0.2.0/26"), ("p1", 21, ranges["n1"])):
            await agents.join(name, f"uid-{name}", number)
            await api.add(name, podCIDR=preset, podCIDRs=[preset])
            await cluster.says(name, "True", "IsthmusRangeConflict")
            assert await cluster.pod_cidr(name) == preset
        assert "n1" in await cluster.told("p1", "IsthmusRangeConflict")
        assert await api.network("n1") == ("False", "IsthmusIsUp")

        # A Node is deleted: whoever reports stays, whoever is silent goes.
        for name in ("n1", "n2"):
            await api.ask("DELETE", f"/api/v1/nodes/{name}")
        del agents.alive["n2"]
        await until(lambda: "n2" not in cluster.state.nodes, within_s=60)
        assert "n1" in cluster.state.nodes
        # The same machine's Node made anew: the member stays, podCIDR is written anew, the binding moves.
        made = await api.add("n1")
        await cluster.says("n1", "False", "IsthmusIsUp")
        assert await cluster.pod_cidr("n1") == ranges["n1"]
        await until(lambda: cluster.state.bound["n1"].node_uid == made["metadata"]["uid"])

        # Another machine under a member's name: a conflict, until its agent joins and the Node is made anew.
        first = await agents.join("m0", A, 30)
        await api.add("m0")
        await machine(cluster, "m0", A)
        await cluster.says("m0", "False", "IsthmusIsUp")
        await api.ask("DELETE", "/api/v1/nodes/m0")
        await api.add("m0")
        await machine(cluster, "m0", B)
        await cluster.says("m0", "True", "IsthmusRangeConflict")
        assert B in await cluster.told("m0", "IsthmusRangeConflict")
        del agents.alive["m0"]
        await until(lambda: "m0" in cluster.state.unreachable, within_s=60)
        await operator.send(FenceNode(node="m0", reason="the machine was replaced"))
        second = await agents.join("m0", B, 31)
        assert second != first
        await api.ask("DELETE", "/api/v1/nodes/m0")
        await api.add("m0")
        await machine(cluster, "m0", B)
        await cluster.says("m0", "False", "IsthmusIsUp")
        node = await api.node("m0")
        assert (node["spec"]["podCIDR"], node["metadata"]["annotations"][UID]) == (second, B)

        # Renamed: the new name gets nothing, and both names are told.
        await api.add("new-name")
        assert await refused(
            operator.send(JoinNode(node="new-name", uid="uid-3", kind="cloud", underlay="192.168.9.40"))
        ) == "uid_in_use"  # fmt: skip
        await cluster.says("new-name", "True", "IsthmusNoRange")
        assert "n3" in await cluster.told("new-name", "IsthmusNoRange")
        assert not await cluster.pod_cidr("new-name")

        # Silent after it was ready: what was said stays.
        del agents.alive["n4"]
        await until(lambda: "n4" in cluster.state.unreachable, within_s=60)
        await api.add("last")
        await cluster.says("last", "True", "IsthmusNoRange")
        assert await api.network("n4") == ("False", "IsthmusIsUp")

        # The API server dies: joins and ranges go on, patches follow.
        api.kill()
        late = await agents.join("late", "uid-late", 50)
        api.start()
        await api.ready()
        await api.add("late")
        await cluster.says("late", "False", "IsthmusIsUp")
        assert await cluster.pod_cidr("late") == late


async def test_pods_of_an_earlier_range_are_evicted_as_budgets_allow(tmp_path: Path) -> None:
    async with started(tmp_path, evict_stale_pods=True) as cluster:
        api, agents = cluster.api, cluster.agents
        await agents.join("n0", "uid-0", 1)
        await api.add("n0")
        await cluster.says("n0", "False", "IsthmusIsUp")
        pods = "/api/v1/namespaces/default/pods"
        for name, address, label in (
            ("old", "10.199.0.2", "a"),
            ("guarded", "10.199.0.3", "b"),
            ("own", "10.200.0.9", "a"),
        ):
            pod = {
                "metadata": {"name": name, "labels": {"app": label}},
                "spec": {"nodeName": "n0", "containers": [{"name": "c", "image": "none"}]},
            }
            code, said = await api.ask("POST", pods, pod)
            assert code == 201, said
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            code, said = await api.ask(
                "PATCH", f"{pods}/{name}/status", {"status": status}, kind="application/merge-patch+json"
            )
            assert code == 200, said
        budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
        budget = {
            "metadata": {"name": "b"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "b"}}},
        }
        code, said = await api.ask("POST", budgets, budget)
        assert code == 201, said
        agents.stray["n0"] = ("10.199.0.0/26",)

        async def left() -> set[str]:
            _, found = await api.ask("GET", pods)
            return {p["metadata"]["name"] for p in found["items"] if "deletionTimestamp" not in p["metadata"]}

        async def settled() -> bool:
            return await left() == {"guarded", "own"} and "disruption budget" in cluster.bridge.problem

        await until(settled, within_s=60)
        assert "10.199.0" in await cluster.told("n0", "IsthmusStalePods")
        await api.ask("DELETE", f"{budgets}/b")

        async def only_own() -> bool:
            return await left() == {"own"}

        await until(only_own, within_s=90)


async def test_backends_follow_the_slices_of_the_api_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "POLL_S", 0.1)
    async with started(tmp_path, apiserver_backends="main") as cluster:
        await cluster.operator.send(ReserveClb(reservation="main", subnet="10.0.8.0/28", provider="gateway"))
        slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
        made: dict[str, Any] = {
            "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.1.11"], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        }
        code, said = await cluster.api.ask("POST", slices, made)
        assert code in {201, 409}, said

        def backends(running: Controller) -> set[str]:
            return {f"{key.address}:{key.backend_port}" for key in running.replica.state.backends}

        await until(lambda: backends(cluster.running) == {"10.0.1.11:6443"}, within_s=60)


@pytest.mark.skipif(not CONTROLLER_MANAGER, reason="the folder has no kube-controller-manager")
async def test_kube_controller_manager_allocating_beside_us(tmp_path: Path) -> None:
    """It races the bridge for each Node: whoever is first, no podCIDR is somebody else's range unnoticed."""
    async with started(tmp_path) as cluster:
        api, agents = cluster.api, cluster.agents
        for number in range(8):
            await agents.join(f"n{number}", f"uid-{number}", number + 1)
        # The very ranges that the log gives, so that podCIDRs collide.
        with api.controller_manager("--allocate-node-cidrs=true", "--cluster-cidr=10.200.0.0/16",
                                    "--node-cidr-mask-size=26"):  # fmt: skip
            for number in reversed(range(8)):
                await api.add(f"n{number}")

            async def settled() -> bool:
                for number in range(8):
                    name = f"n{number}"
                    cidr, own = await cluster.pod_cidr(name), cluster.state.owned[name].cidr
                    reason = "IsthmusIsUp" if cidr == own else "IsthmusRangeConflict"
                    if not cidr or (await api.network(name) or ("", ""))[1] != reason:
                        return False
                return True

            await until(settled, within_s=120)
            conflicts = [
                n for n in range(8) if await cluster.pod_cidr(f"n{n}") != cluster.state.owned[f"n{n}"].cidr
            ]
            for number in conflicts:
                assert "--allocate-node-cidrs=false" in await cluster.told(f"n{number}", "IsthmusRangeConflict")
        # Without it, and after the way out that the Event names, all is well.
        with api.controller_manager("--allocate-node-cidrs=false"):
            for number in conflicts:
                await api.ask("DELETE", f"/api/v1/nodes/n{number}")
                await api.add(f"n{number}")
            for number in range(8):
                await cluster.says(f"n{number}", "False", "IsthmusIsUp")
            # What the condition is for: Kubernetes keeps pods off a Node whose member is gone.
            del agents.alive["n1"]
            await cluster.operator.send(RemoveNode(node="n1"))

            async def tainted() -> bool:
                taints = (await api.node("n1"))["spec"].get("taints", [])
                return UNREACHABLE in {taint["key"] for taint in taints}

            await until(tainted, within_s=60)
