"""The plan of an adoption: what users have is read, and what does not fit is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane.cli.adopt import plan_file, planning, sources
from controlplane.cli.adopt.planning import Report, Wish
from controlplane.cluster.decide import decide
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.kubernetes.node_objects import Rules
from events.errors import BadRequest, Refused
from tests.controlplane import adoption_inputs as given
from tests.controlplane.adoption_inputs import as_etcd, flannel, leases, listed, node
from tests.controlplane.world import START

RULES = Rules(kind="cloud")


def plan(text: str, **wish: Any) -> Report:
    return planning.make(sources.nodes_of(text, RULES), Wish(**wish))


def told(report: Report) -> set[tuple[str, str]]:
    assert report.plan is None
    return {(entry["node"], entry["code"]) for entry in report.findings}


def test_k3s_is_taken_as_it_is() -> None:
    made = plan(given.k3s(12)).plan
    assert made is not None
    assert (made.define.container_cidr, made.define.pods_per_node) == ("10.42.0.0/16", 256)
    assert (made.define.vni, made.define.vxlan_port, made.device) == (1, 8472, "flannel.1")
    assert (made.service_cidr, made.cursor, made.capacity) == ("10.42.255.0/24", 12, 255)
    first = made.nodes[0]
    assert (first.node, first.range, first.vtep_mac) == ("k3s-1", "10.42.0.0/24", "8a:00:00:00:00:01")
    assert (first.kind, first.underlay, first.announced) == ("external", "192.0.2.1", "")
    assert [each.range for each in made.nodes] == [f"10.42.{n}.0/24" for n in range(12)]


def test_kubeadm_with_an_old_node_is_taken() -> None:
    made = plan(given.kubeadm()).plan
    assert made is not None
    assert made.define.container_cidr == "10.244.0.0/16"
    assert [each.node for each in made.nodes] == ["control", "worker-a", "worker-b"]
    assert made.cursor == 5


def test_ranges_of_kube_controller_manager_are_kept_with_a_new_device() -> None:
    report = plan(given.kind(), source="podcidr")
    assert report.plan is not None
    assert report.plan.device == ""
    assert all(each.vtep_mac.startswith("66:") for each in report.plan.nodes)
    assert [each.underlay for each in report.plan.nodes] == ["172.18.0.2", "172.18.0.3"]
    half = plan(given.digitalocean(), source="podcidr").plan
    assert half is not None
    assert (half.define.pods_per_node, half.nodes[1].range) == (128, "10.244.0.128/25")


def test_nodes_without_ranges_are_told() -> None:
    assert {code for _, code in told(plan(given.eks(), source="podcidr"))} == {"adopt_range_missing"}
    codes = {code for _, code in told(plan(given.kind(), source="flannel"))}
    assert codes == {"adopt_annotation_missing"}


def test_nodes_of_rke2_and_talos_are_taken_and_those_of_kops_have_another_cidr() -> None:
    made = plan(given.rke2_canal())
    assert made.plan is not None
    assert {each.kind for each in made.plan.nodes} == {"external"}
    assert any("Calico" in note and "k8s-pod-network" in note for note in made.notes)
    made = plan(given.talos())
    assert made.plan is not None
    assert [each.underlay for each in made.plan.nodes] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert not any("Calico" in note for note in made.notes)
    with pytest.raises(Refused) as refused:  # the shared address space is nobody's own
        plan(given.kops(), cidr="100.96.0.0/11")
    assert refused.value.code == "cidr_not_private"


def test_a_container_cidr_that_nobody_says_leaves_room_for_services() -> None:
    nodes = [node(f"n{n}", n, ranges=[f"10.9.{n}.0/24"], annotations=flannel(n)) for n in (1, 2, 3)]
    made = plan(listed(*nodes)).plan
    assert made is not None
    assert (made.define.container_cidr, made.service_cidr) == ("10.9.0.0/21", "10.9.7.0/24")


def test_nodes_of_microk8s_have_no_ranges() -> None:
    assert {code for _, code in told(plan(given.microk8s(), source="podcidr"))} == {"adopt_range_missing"}


def with_node(**changes: Any) -> str:
    """k3s with one node more, number 9."""
    parts: dict[str, Any] = {"ranges": ["10.42.9.0/24"], "annotations": flannel(9)} | changes
    return listed(*json.loads(given.k3s())["items"], node("odd", 9, **parts))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (
            {"annotations": flannel(9, backend_data='{"VNI":"1","VtepMAC":"8a:00:00:00:00:09"}')},
            "adopt_vni_differs",
        ),
        (
            {"annotations": flannel(9, backend_data='{"VNI":true,"VtepMAC":"8a:00:00:00:00:09"}')},
            "adopt_vni_differs",
        ),
        (
            {"annotations": flannel(9, backend_data='{"VNI":0,"VtepMAC":"8a:00:00:00:00:09"}')},
            "adopt_vni_differs",
        ),
        ({"annotations": flannel(9, backend_data='{"VNI":1,"VtepMAC":"8a:00:00:00:00"}')}, "adopt_mac_invalid"),
        ({"annotations": flannel(9, backend_data='{"VNI":1}')}, "adopt_mac_invalid"),
        ({"annotations": flannel(9, backend_data='{"VNI":1,"VtepMAC":7}')}, "adopt_mac_invalid"),
        ({"annotations": flannel(9, backend_data="[1]")}, "adopt_annotation_unreadable"),
        ({"annotations": flannel(9, backend_data='"text"')}, "adopt_annotation_unreadable"),
        ({"annotations": flannel(9, backend_type="wireguard")}, "adopt_backend"),
        ({"annotations": flannel(9, backend_type="udp")}, "adopt_backend"),
        ({"annotations": flannel(9, public_ip="fd00::9"), "addresses": []}, "underlay_address_invalid"),
        ({"annotations": flannel(9, public_ip="10.42.1.7"), "addresses": []}, "cidr_conflict_with_node"),
        ({"annotations": flannel(9, public_ip="somewhere"), "addresses": []}, "underlay_address_invalid"),
        ({"annotations": flannel(9, public_ip="127.0.0.1"), "addresses": []}, "underlay_address_invalid"),
        ({"annotations": flannel(9, public_ip="224.0.0.9"), "addresses": []}, "underlay_address_invalid"),
        ({"ranges": ["10.42.9.0/255.255.255.0"]}, "adopt_range_unreadable"),
        ({"ranges": ["10.42.9.0-10.42.9.255"]}, "adopt_range_unreadable"),
        ({"ranges": ["0.0.0.0/0"]}, "adopt_range_unreadable"),
        ({"ranges": ["xx.xx.xx.xx/24"]}, "adopt_range_unreadable"),
        ({"ranges": ["10.42.9.0/16"]}, "adopt_range_host_bits"),
        ({"ranges": ["10.42.0.0/16"]}, "adopt_range_size"),
        ({"ranges": ["fd00:10:42::/64"]}, "adopt_range_ipv6"),
        ({"ranges": ["fd00::/64", "10.42.9.0/24"]}, "adopt_range_ipv6"),
    ],
)
def test_each_wrong_input_has_its_code(changes: dict[str, Any], code: str) -> None:
    assert ("odd", code) in told(plan(with_node(**changes)))


def test_a_name_or_a_machine_that_comes_twice_is_told() -> None:
    items = json.loads(given.k3s())["items"]
    again = node("k3s-1", 9, ranges=["10.42.9.0/24"], annotations=flannel(9))
    assert {node for node, _ in told(plan(listed(*items, again)))} == {"k3s-1"}
    clone = node("clone", 9, ranges=["10.42.9.0/24"], annotations=flannel(9))
    clone["status"]["nodeInfo"] = items[0]["status"]["nodeInfo"]
    assert told(plan(listed(*items, clone))) == {("clone", "uid_in_use")}


def test_everything_that_is_wrong_is_told_at_once() -> None:
    fine = [node(f"fine-{n}", n, ranges=[f"10.42.{n}.0/24"], annotations=flannel(n)) for n in range(1, 6)]
    other_vni = json.dumps({"VNI": 4096, "VtepMAC": "8a:00:00:00:00:15"})
    port = json.dumps({"VNI": 1, "Port": 4789, "VtepMAC": "8a:00:00:00:00:1b"})
    wrong = [
        node("twin", 20, ranges=["10.42.1.0/24"], annotations=flannel(20)),
        node("vni", 21, ranges=["10.42.21.0/24"], annotations=flannel(21, backend_data=other_vni)),
        node("host-gw", 22, ranges=["10.42.22.0/24"],
             annotations=flannel(22, backend_type="host-gw", backend_data="null")),
        node("silent", 23, ranges=["10.42.23.0/24"]),
        node("half", 24, ranges=["10.42.24.0/24"], annotations=flannel(24, backend_data="-", public_ip="-")),
        node("bits", 25, ranges=["10.42.25.7/24"], annotations=flannel(25)),
        node("outside", 26, ranges=["10.99.0.0/24"], annotations=flannel(26)),
        node("port", 27, ranges=["10.42.27.0/24"], annotations=flannel(27, backend_data=port)),
        node("services", 28, ranges=["10.42.255.0/24"], annotations=flannel(28)),
        node("several", 29, ranges=["10.42.29.0/24", "10.42.30.0/24"], annotations=flannel(29)),
        node("dual", 30, ranges=["10.42.31.0/24", "fd00:42::/64"], annotations=flannel(30)),
        node("masked", 31, ranges=["***HIDDEN***/25"], annotations=flannel(31)),
        node("small", 32, ranges=["10.42.32.0/25"], annotations=flannel(32)),
        node("odd", 33, ranges=["10.42.33.0/24"], annotations=flannel(33, backend_data="{")),
        node("nobody", 34, ranges=["10.42.34.0/24"], annotations=flannel(34)),
        node("same-mac", 35, ranges=["10.42.35.0/24"], annotations=flannel(1, public_ip="192.0.2.35")),
        node("same-address", 36, ranges=["10.42.36.0/24"], annotations=flannel(36, public_ip="192.0.2.1"),
             addresses=[given.internal("192.0.2.1")]),
    ]  # fmt: skip
    wrong[14]["status"]["nodeInfo"] = {"machineID": "", "systemUUID": ""}
    assert told(plan(listed(*fine, *wrong))) == {
        ("twin", "adopt_range_taken"),
        ("vni", "adopt_vni_differs"),
        ("host-gw", "adopt_backend"),
        ("silent", "adopt_annotation_missing"),
        ("half", "adopt_annotation_missing"),
        ("bits", "adopt_range_host_bits"),
        ("outside", "adopt_range_outside"),
        ("port", "adopt_port_differs"),
        ("services", "adopt_range_service"),
        ("several", "adopt_range_several"),
        ("dual", "adopt_range_ipv6"),
        ("masked", "adopt_range_unreadable"),
        ("small", "adopt_range_size"),
        ("odd", "adopt_annotation_unreadable"),
        ("nobody", "adopt_node_unreadable"),
        ("same-mac", "adopt_mac_taken"),
        ("same-address", "underlay_address_in_use"),
    }


def test_both_sides_are_named() -> None:
    one = node("one", 1, ranges=["10.42.1.0/24"], annotations=flannel(1))
    two = node("two", 2, ranges=["10.42.1.0/24"], annotations=flannel(2))
    (entry,) = plan(listed(one, two)).findings
    assert (entry["node"], entry["code"]) == ("two", "adopt_range_taken")
    assert "'one'" in entry["message"]
    assert "10.42.1.0/24" in entry["message"]


def test_who_is_left_out_is_not_judged() -> None:
    bad = node("bad", 9, ranges=["10.99.0.0/25"])
    text = listed(*json.loads(given.k3s())["items"], bad)
    assert plan(text).plan is None
    made = plan(text, skip=("bad",)).plan
    assert made is not None
    assert len(made.nodes) == 3
    with pytest.raises(BadRequest, match="no such node"):
        plan(text, skip=("nobody",))


def test_a_public_address_behind_nat_is_announced() -> None:
    text = listed(node("edge", 1, ranges=["10.42.0.0/24"], annotations=flannel(1, public_ip="203.0.113.9")))
    made = plan(text).plan
    assert made is not None
    assert (made.nodes[0].underlay, made.nodes[0].announced) == ("192.0.2.1", "203.0.113.9")


def test_flannels_word_settles_which_of_two_addresses_it_is() -> None:
    two = [given.internal("192.0.2.1"), given.internal("198.18.0.1")]
    text = listed(node("two", 1, ranges=["10.42.0.0/24"], annotations=flannel(1), addresses=two))
    made = plan(text).plan
    assert made is not None
    assert made.nodes[0].underlay == "192.0.2.1"


# --- flannel's etcd and files, Cilium --------------------------------------------------------------------


def as_v2(found: dict[str, Any]) -> str:
    nodes = [{"key": key, "value": json.dumps(value)} for key, value in found.items()]
    return json.dumps({"action": "get", "node": {"dir": True, "nodes": [{"dir": True, "nodes": nodes}]}})


@pytest.mark.parametrize("form", [as_etcd, as_v2, json.dumps])
def test_leases_of_etcd_are_read_in_each_form(form: Any) -> None:
    hosts = sources.hosts_of("192.0.2.7 alpha uid-7  # rack 1\n\n192.0.2.9 beta uid-9\n", "external")
    found, configured = sources.leases_of(form(leases(7, 9)), hosts)
    made = planning.make(found, Wish(), configured=configured).plan
    assert made is not None
    assert made.define.container_cidr == "10.5.0.0/16"
    assert [(each.node, each.range, each.uid) for each in made.nodes] == [
        ("alpha", "10.5.7.0/24", "uid-7"),
        ("beta", "10.5.9.0/24", "uid-9"),
    ]


def test_a_lease_of_nobody_and_one_of_another_backend_are_told() -> None:
    hosts = sources.hosts_of("192.0.2.7 alpha uid-7", "cloud")
    found, configured = sources.leases_of(json.dumps(leases(7, 9, BackendType="wireguard")), hosts)
    assert told(planning.make(found, Wish(), configured=configured)) == {
        ("alpha", "adopt_backend"),
        ("lease 10.5.9.0-24", "adopt_node_unnamed"),
        ("lease 10.5.9.0-24", "adopt_backend"),
    }


def test_cilium_nodes_with_one_range_fit_and_with_several_do_not() -> None:
    nodes = sources.nodes_of(given.kind(), RULES)

    def object_of(name: str, *ranges: str) -> dict[str, Any]:
        return {"kind": "CiliumNode", "metadata": {"name": name}, "spec": {"ipam": {"podCIDRs": list(ranges)}}}

    one = json.dumps(
        {"items": [object_of("kind-control-plane", "10.0.1.0/24"), object_of("kind-worker", "10.0.0.0/24")]}
    )
    made = planning.make(sources.cilium_of(one, nodes), Wish(source="cilium", cidr="10.0.0.0/8")).plan
    assert made is not None
    assert [each.node for each in made.nodes] == ["kind-worker", "kind-control-plane"]
    nodes = sources.nodes_of(given.kind(), RULES)
    two = json.dumps(
        [object_of("kind-worker", "10.0.0.0/24", "10.0.5.0/24"), object_of("other", "10.0.9.0/24")]
    )
    assert told(planning.make(sources.cilium_of(two, nodes), Wish(source="cilium", cidr="10.0.0.0/16"))) == {
        ("kind-worker", "adopt_range_several"),
        ("kind-control-plane", "adopt_range_missing"),
        ("other", "adopt_node_unnamed"),
    }


def test_subnet_env_gives_the_network_and_the_mtu_and_is_held_against_the_nodes() -> None:
    text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    env = sources.subnet_env_of(text)
    nodes = sources.nodes_of(given.k3s(), RULES)
    made = planning.make(nodes, Wish(), subnet_envs={"k3s-1.env": env}).plan
    assert made is not None
    assert (made.mtu, made.define.container_cidr) == (1450, "10.42.0.0/16")
    others = {"a": env, "b": env, "c": sources.SubnetEnv("10.42.0.0/16", "10.42.77.0/24", 8951)}
    assert told(planning.make(sources.nodes_of(given.k3s(), RULES), Wish(), subnet_envs=others)) == {
        ("c", "adopt_range_missing"),
        ("c", "adopt_mtu_differs"),
    }
    with pytest.raises(BadRequest):
        sources.subnet_env_of("FLANNEL_SUBNET=10.42.0.1/24")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '{"items": [7]}', '{"items": [{"kind": "Pod"}]}', "[" * 9999]
)
def test_a_file_that_is_none_is_refused_by_name(text: str) -> None:
    for reader in (lambda: sources.nodes_of(text, RULES), lambda: sources.cilium_of(text, [])):
        with pytest.raises(BadRequest) as refused:
            reader()
        assert refused.value.code == "import_unreadable"
    with pytest.raises(BadRequest):
        sources.leases_of(text, [])


@pytest.mark.parametrize(
    "broken", [{}, {"metadata": 7}, {"metadata": {"annotations": []}, "spec": [], "status": "x"}]
)
def test_a_node_of_any_shape_is_told_of_and_never_raises(broken: dict[str, Any]) -> None:
    assert {code for _, code in told(plan(listed(broken)))} >= {"adopt_node_unreadable"}


# --- the plan and its file ---------------------------------------------------------------------------------


def test_the_plan_does_what_it_says_and_a_second_run_writes_nothing() -> None:
    made = plan(given.k3s(), cluster="prod", service_cidr="10.43.0.0/16").plan
    assert made is not None
    state = ClusterState("prod")
    written = []
    for _ in range(2):
        for command in planning.commands(made):
            decision = decide(state, command, START)
            assert decision.refusal is None
            for event in decision.events:
                evolve(state, state.sequence + 1, event)
            written.append(len(decision.events))
    assert written == [1, 1, 6, 0, 0, 0]
    assert state.pool.cursor == made.cursor
    assert {name: held.cidr for name, held in state.owned.items()} == {
        each.node: each.range for each in made.nodes
    }
    assert state.adoption["prod"].plan == made.digest


def test_a_node_that_flannel_adds_meanwhile_comes_with_the_next_plan() -> None:
    state = ClusterState("default")
    written = []
    for count in (3, 5):
        made = plan(given.k3s(count)).plan
        assert made is not None
        for command in planning.commands(made):
            decision = decide(state, command, START)
            assert decision.refusal is None, decision.refusal
            for event in decision.events:
                evolve(state, state.sequence + 1, event)
            written.append(len(decision.events))
    assert written == [1, 1, 6, 0, 0, 4]
    assert state.owned["k3s-5"].cidr == "10.42.4.0/24"


def test_many_nodes_go_in_batches() -> None:
    nodes = []
    for n in range(1, 1001):
        address = f"198.18.{n >> 8}.{n & 255}"
        data = json.dumps({"VNI": 1, "VtepMAC": f"8a:00:00:00:{n >> 8:02x}:{n & 255:02x}"})
        said = flannel(n, backend_data=data, public_ip=address)
        range_ = f"10.{n // 250}.{n % 250}.0/24"
        nodes.append(node(f"n{n}", n, ranges=[range_], annotations=said, addresses=[given.internal(address)]))
    made = plan(listed(*nodes), cidr="10.0.0.0/8").plan
    assert made is not None
    assert [len(command.nodes) for command in planning.commands(made)[2:]] == [400, 400, 200]  # type: ignore[attr-defined]


def test_a_file_is_read_as_it_was_written_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    made = plan(given.k3s()).plan
    assert made is not None
    path = tmp_path / "plan.json"
    plan_file.save(path, made)
    assert plan_file.load(path) == made
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]
    good = path.read_text()
    for bad in (
        good.replace("10.42.1.0/24", "10.42.9.0/24"),
        good.replace("plan/1", "plan/2"),
        good[:-9],
        "{}",
        "x",
    ):
        path.write_text(bad)
        with pytest.raises(BadRequest) as refused:
            plan_file.load(path)
        assert refused.value.code == "adopt_plan_invalid"
    path.write_bytes(msgspec.json.encode(made))  # another layout is the same plan
    assert plan_file.load(path) == made


def test_wishes_that_no_node_could_meet_are_refused() -> None:
    with pytest.raises(Refused) as refused:
        plan(given.k3s(), cidr="203.0.113.0/24")
    assert refused.value.code == "cidr_not_private"
