"""The bridge beside a real controller on a real bus: from a join to the Node's podCIDR, and back."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.controller.agents import liveness
from controlplane.controller.controller import Controller
from controlplane.kubernetes import bridge, endpoints
from controlplane.kubernetes.members import bridging
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.status_stream import publish
from events.protocol.commands import (
    AddBackend,
    BeginAdoption,
    DefineCluster,
    JoinNode,
    RemoveNode,
    ReserveClb,
)
from events.status import AgentStatus
from tests.controlplane.adoption_inputs import flannel, node
from tests.kubernetes.apiserver import ApiServer
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[BusOptions]:
    store = tmp_path / "jetstream"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as running:
        yield BusOptions(servers=(running.url,))


async def report(operator: ControllerClient, node: str, uid: str, applied: int) -> None:
    """The agent of ``node`` says that it is ready."""
    status = AgentStatus(node=node, uid=uid, applied=applied, sent_at=datetime.now(UTC), interval_s=5)
    assert await publish(operator._nats, CLUSTER, status)


async def test_a_join_becomes_a_pod_cidr_and_a_removal_keeps_pods_away(bus: BusOptions, tmp_path: Path) -> None:
    api = ApiServer()
    for number in range(2):
        api.add(f"n{number}")
    async with (
        controller(bus, tmp_path / "a") as running,
        client(bus) as operator,
        api.serving(tmp_path) as kubeconfig,
        bridging(running, kubeconfig, fence_deleted_s=0.1),
    ):
        await until(lambda: api.network("n0") == ("True", "IsthmusNoRange"))
        await operator.send(DEFINE)
        joined = [await operator.send(join(number)) for number in range(2)]
        await until(lambda: api.network("n0") == ("True", "IsthmusAgentNotReady"))
        for number, reply in enumerate(joined):
            # Before its own range has come to it; then the same words mean that it has.
            await report(operator, f"n{number}", f"uid-{number}", 1)
            await until(lambda number=number: f"uid-{number}" in running.liveness.statuses)
            await report(operator, f"n{number}", f"uid-{number}", reply.sequence)
        await until(lambda: all(api.network(name) == ("False", "IsthmusIsUp") for name in ("n0", "n1")))
        state = running.replica.state
        for name in ("n0", "n1"):
            assert api.nodes[name]["spec"]["podCIDR"] == state.owned[name].cidr
            await until(lambda name=name: name in running.replica.state.bound)
            assert state.bound[name].node_uid == api.nodes[name]["metadata"]["uid"]

        await operator.send(RemoveNode(node="n1"))
        await until(lambda: api.network("n1") == ("True", "IsthmusNoRange"))
        again = await operator.send(join(1, uid="uid-9"))
        await report(operator, "n1", "uid-9", again.sequence)
        await until(lambda: api.network("n1") == ("True", "IsthmusRangeConflict"))
        assert api.nodes["n1"]["spec"]["podCIDR"] == joined[1].result["cidr"]
        api.delete("n0")  # its agent reports: whatever becomes of the Node, nobody touches the member
        api.delete("n1")
        api.add("n1")
        await until(lambda: api.network("n1") is not None and api.nodes["n1"]["spec"].get("podCIDR"))
        assert api.nodes["n1"]["spec"]["podCIDR"] == again.result["cidr"]
        assert "n0" in state.nodes


def on_flannel(number: int, **changes: Any) -> dict[str, Any]:
    """A Node as flannel has it, with the range 10.42.<number>.0/24."""
    said = flannel(number, **changes)
    return copy.deepcopy(node(f"old-{number}", number, ranges=[f"10.42.{number}.0/24"], annotations=said))


async def test_what_flannel_changes_during_an_adoption_is_followed(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node added, one with a new device, one made anew with another range, one removed, one unfit."""
    monkeypatch.setattr(bridge, "REMOVE_S", 0.1)
    monkeypatch.setattr(liveness, "ABSENT_AFTER_S", 0.1)  # agents that flannel's nodes do not have
    monkeypatch.setattr(bridge, "PAUSE_LONGEST_S", 0.2)
    api = ApiServer()
    for number in (1, 2):
        api.put(on_flannel(number))
    async with (
        controller(bus, tmp_path / "a") as running,
        client(bus) as operator,
        api.serving(tmp_path) as kubeconfig,
        bridging(running, kubeconfig) as bridged,
    ):
        define = DefineCluster(container_cidr="10.42.0.0/16", pods_per_node=256, services=256, vni=1,
                               quarantine_s=0)  # fmt: skip
        await operator.send(define)
        await operator.send(BeginAdoption(source="flannel"))

        def held() -> dict[str, str]:
            return {name: owned.cidr for name, owned in running.replica.state.owned.items()}

        api.add("bare")  # nothing is known of it: it may be flannel's in a moment
        api.put(on_flannel(3))
        await until(lambda: held() == {f"old-{n}": f"10.42.{n}.0/24" for n in (1, 2, 3)})
        api.put(on_flannel(3, backend_data='{"VNI":1,"VtepMAC":"8a:00:00:00:0b:03"}', public_ip="192.0.2.33"))
        await until(lambda: running.replica.state.nodes["old-3"].vtep_mac == "8a:00:00:00:0b:03")
        assert running.replica.state.nodes["old-3"].announced == "192.0.2.33"

        new = await operator.send(JoinNode(node="bare", uid="uid-bare", kind="cloud", underlay="192.0.2.99"))
        await report(operator, "bare", "uid-bare", new.sequence)
        await until(lambda: api.network("bare") == ("False", "IsthmusIsUp"))
        assert (
            api.nodes["bare"]["metadata"]["annotations"]
            | flannel(99)
            | {"flannel.alpha.coreos.com/backend-data": f'{{"VNI":1,"VtepMAC":"{new.result["vtep_mac"]}"}}'}
            == api.nodes["bare"]["metadata"]["annotations"]
        )  # by which flannel's nodes find it

        # Its range is that of another node, until that is gone, too.
        api.put(on_flannel(9) | {"spec": {"podCIDR": "10.42.2.0/24", "podCIDRs": ["10.42.2.0/24"]}})
        await until(lambda: any("adopt_range_taken" in event["note"] for event in api.events))
        assert "old-9" in bridged.problem or "adopt_range_taken" in bridged.problem
        api.delete("old-2")
        await report(operator, "bare", "uid-bare", running.replica.state.sequence + 4)
        await until(lambda: "old-2" not in held())
        await report(operator, "bare", "uid-bare", running.replica.state.sequence)
        await until(lambda: held().get("old-9") == "10.42.2.0/24")

        anew = on_flannel(1)
        anew["spec"] = {"podCIDR": "10.42.77.0/24", "podCIDRs": ["10.42.77.0/24"]}
        api.delete("old-1")
        api.put(anew)
        await until(lambda: held().get("old-1") == "10.42.77.0/24")
        assert all(api.network(name) is None for name in api.nodes if name != "bare")


def slice_of(*addresses: str, ready: bool | None = True, family: str = "IPv4") -> dict[str, Any]:
    """As an API server writes it for the Service ``kubernetes``."""
    return {
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}} for address in addresses],
        "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}, {"name": "other", "port": 1}],
    }


async def test_backends_follow_the_api_servers_and_those_of_operators_stay(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over a change of the controller: what is whose stands in the log."""
    monkeypatch.setattr(endpoints, "POLL_S", 0.05)
    api = ApiServer()

    async def serve(data: str, do: Callable[[ControllerClient, Controller], Awaitable[None]]) -> None:
        async with (
            controller(bus, tmp_path / data) as running,
            client(bus) as operator,
            bridging(running, kubeconfig, apiserver_backends="main"),
        ):
            await do(operator, running)

    def backends(running: Controller) -> set[str]:
        return {f"{key.address}:{key.backend_port}" for key in running.replica.state.backends}

    async def first(operator: ControllerClient, running: Controller) -> None:
        await operator.send(DEFINE)
        await operator.send(ReserveClb(reservation="main", subnet="10.0.8.0/28", provider="gateway"))
        for address in ("10.0.1.11", "10.0.1.99"):  # one of them is an API server as well
            await operator.send(
                AddBackend(
                    reservation="main", purpose="apiserver", port=443, address=address, backend_port=6443
                )
            )
        api.slices = [
            slice_of("10.0.1.11", "10.0.1.12"),
            slice_of("10.0.1.13", ready=None),
            slice_of("10.0.1.14", ready=False),
            slice_of("fd00::1", family="IPv6"),
            slice_of("no address"),
        ]
        four = {f"10.0.1.{last}:6443" for last in (11, 12, 13, 99)}
        await until(lambda: backends(running) == four)

    async def second(operator: ControllerClient, running: Controller) -> None:
        del operator
        api.slices = [slice_of("10.0.1.12")]
        await until(lambda: backends(running) == {f"10.0.1.{last}:6443" for last in (11, 12, 99)})
        api.slices = [slice_of("10.0.1.12", ready=False)]  # nobody is ready: nothing follows from it
        lists = api.requests
        await until(lambda: api.requests > lists + 3)
        assert "10.0.1.12:6443" in backends(running)

    async with api.serving(tmp_path) as kubeconfig:
        await serve("a", first)
        await serve("b", second)


def service_of(
    name: str, port: int, node_port: int, *, made: int, reservation: str = "main", **spec: Any
) -> Any:
    """A NodePort Service that asks for the public address."""
    return {
        "metadata": {
            "name": name, "namespace": "web", "uid": f"s-{name}",
            "creationTimestamp": f"2026-11-29T00:00:0{made}Z",
            "annotations": {"isthmus.io/public-services": reservation},
        },
        "spec": {"ports": [{"port": port, "protocol": "TCP", "nodePort": node_port}], **spec},
    }  # fmt: skip


def served_on(*nodes: str, ready: bool = True) -> list[dict[str, Any]]:
    return [{
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
        "endpoints": [
            {"addresses": ["10.200.0.9"], "nodeName": node, "conditions": {"ready": ready}} for node in nodes
        ],
    }]  # fmt: skip


async def test_the_public_address_follows_annotated_services_and_leaves_operators_ports_alone(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "POLL_S", 0.05)
    api = ApiServer()
    async with (
        controller(bus, tmp_path / "a") as running,
        client(bus) as operator,
        api.serving(tmp_path) as kubeconfig,
        bridging(running, kubeconfig, service_backends=True),
    ):
        await operator.send(DEFINE)
        for number in range(3):
            await operator.send(join(number))
        await operator.send(ReserveClb(reservation="main", subnet="10.0.8.0/28", provider="gateway"))
        kept = AddBackend(reservation="main", purpose="public-services", port=22, address="10.0.1.9")
        await operator.send(kept)
        await operator.send(AddBackend(reservation="main", purpose="apiserver", port=443, address="10.0.1.9"))

        def backends() -> dict[str, Any]:
            found = running.replica.state.backends.items()
            return {f"{key.port}>{key.address}:{key.backend_port}": each for key, each in found}

        others = {"22>10.0.1.9:22", "443>10.0.1.9:443"}
        api.services = [
            service_of("web", 80, 30080, made=1, sessionAffinity="ClientIP"),
            service_of("late", 80, 30081, made=2),  # asks for the same port
            service_of("ssh", 22, 30022, made=3),  # an operator's
            service_of("lost", 81, 30082, made=4, reservation="nobody"),
            service_of("inner", 82, 0, made=5),  # of type ClusterIP
            service_of("local", 83, 30083, made=6, healthCheckNodePort=31000),
        ]
        names = ("web", "late", "ssh", "lost", "inner", "local")
        api.service_slices = {f"web/{name}": served_on("n0", "n1", "stranger") for name in names}
        web = {f"80>192.168.0.{last}:30080" for last in (1, 2)}
        local = {f"83>192.168.0.{last}:30083" for last in (1, 2)}
        await until(lambda: backends().keys() == others | web | local)
        assert backends()["80>192.168.0.1:30080"].affinity == "source"
        checked = backends()["83>192.168.0.1:30083"]
        assert (checked.check, checked.check_path, checked.check_port) == ("http", "/healthz", 31000)

        # Endpoints move, and the elder goes: its port is the other one's.
        api.service_slices["web/local"] = served_on("n2") + served_on("n1", ready=False)
        api.services = [each for each in api.services if each["metadata"]["name"] != "web"]
        late = {f"80>192.168.0.{last}:30081" for last in (1, 2)}
        await until(lambda: backends().keys() == others | late | {"83>192.168.0.3:30083"})
        api.services = []
        await until(lambda: backends().keys() == others)
