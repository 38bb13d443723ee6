"""What the network before changes while a plan is carried out, and where a plan's nodes are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane.cli.adopt import following, planning, reading, sources
from controlplane.cli.adopt.following import Changes
from controlplane.cli.adopt.planning import AdoptionPlan, Origin, Wish
from controlplane.cli.adopt.reading import Found
from controlplane.kubernetes.node_objects import Rules
from events.errors import BadRequest, Refused
from tests.controlplane import adoption_inputs as given
from tests.controlplane.adoption_inputs import as_etcd, flannel, leases, listed, node
from tests.kubernetes.apiserver import ApiServer


def found(text: str) -> Found:
    return Found(sources.nodes_of(text, Rules(kind="cloud")), sources.Network(), {})


@pytest.fixture
def plan() -> AdoptionPlan:
    made = planning.make(found(given.k3s(3)).candidates, Wish(cluster="prod", mtu=1400)).plan
    assert made is not None
    return made


def changed(items: list[dict[str, Any]], plan: AdoptionPlan, *over: str) -> Changes:
    return following.follow(plan, found(listed(*items)), over)


def k3s(count: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(given.k3s(count))["items"]
    return items


def test_nothing_new_is_no_change(plan: AdoptionPlan) -> None:
    same = changed(k3s(3), plan)
    assert not same
    assert same.plan == plan


def test_what_came_what_went_and_what_changed_is_told_and_in_the_plan(plan: AdoptionPlan) -> None:
    items = k3s(5)
    items[0]["spec"] = {"podCIDR": "10.42.99.0/24", "podCIDRs": ["10.42.99.0/24"]}
    del items[2]
    new = changed(items, plan)
    assert (new.added, new.changed, new.removed) == (("k3s-4", "k3s-5"), ("k3s-1",), ("k3s-3",))
    assert {each.node: each.range for each in new.plan.nodes} == {
        "k3s-1": "10.42.99.0/24",
        "k3s-2": "10.42.1.0/24",
        "k3s-4": "10.42.3.0/24",
        "k3s-5": "10.42.4.0/24",
    }
    assert (new.plan.mtu, new.plan.cluster, new.plan.define) == (1400, "prod", plan.define)
    assert new.plan.digest != plan.digest
    assert planning.opened(json.dumps(msgspec.to_builtins(new.plan)).encode()) == new.plan


def test_a_node_that_is_over_is_no_longer_flannels(plan: AdoptionPlan) -> None:
    """Its annotations go stale, its lease ends, its Node may say anything."""
    items = k3s(3)
    items[0]["metadata"]["annotations"] = {}
    del items[1]
    assert not changed(items, plan, "k3s-1", "k3s-2")
    with pytest.raises(Refused) as refused:
        changed(items, plan)
    assert refused.value.code == "adoption_refused"
    assert "adopt_annotation_missing" in refused.value.message


def test_one_that_came_and_does_not_fit_holds_nobody_up(plan: AdoptionPlan) -> None:
    odd = node("odd", 9, ranges=["***HIDDEN***/25"], annotations=flannel(9))
    twin = node("twin", 8, ranges=["10.42.0.0/24"], annotations=flannel(8))
    new = changed([*k3s(4), odd, twin], plan)
    assert new.added == ("k3s-4",)
    assert {(entry["node"], entry["code"]) for entry in new.unfit} == {
        ("odd", "adopt_range_unreadable"),
        ("twin", "adopt_range_taken"),
    }


def test_the_list_of_another_cluster_removes_nobody(plan: AdoptionPlan) -> None:
    with pytest.raises(Refused, match="same cluster"):
        changed([node("foreign", 1, ranges=["10.42.0.0/24"], annotations=flannel(1))], plan)


# --- where it is read ---------------------------------------------------------------------------------------


async def test_the_api_server_gives_nodes_in_pages_and_flannels_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ApiServer()
    for number in range(1, 4):
        server.put(node(f"n-{number}", number, ranges=[f"10.77.{number}.0/24"], annotations=flannel(number)))
    conf = {"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472}}
    path = "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg"
    server.objects[path] = {
        "metadata": {"name": "kube-flannel-cfg"},
        "data": {"net-conf.json": json.dumps(conf)},
    }
    monkeypatch.setattr("controlplane.kubernetes.api.PAGE", 2)
    async with server.serving(tmp_path) as kubeconfig:
        read = await reading.read(Origin(kubernetes=True, kubeconfig=str(kubeconfig)))
        assert read.source == "flannel"
        made = planning.make(read.candidates, Wish(), configured=read.configured).plan
        assert made is not None
        assert made.define.container_cidr == "10.77.0.0/16"
        assert [each.node for each in made.nodes] == ["n-1", "n-2", "n-3"]
        server.custom["/apis/cilium.io/v2/ciliumnodes"] = [
            {"metadata": {"name": f"n-{n}"}, "spec": {"ipam": {"podCIDRs": [f"10.9.{n}.0/24"]}}}
            for n in (1, 2, 3)
        ]
        read = await reading.read(Origin(kubernetes=True, kubeconfig=str(kubeconfig)))
        assert read.source == "cilium"
        assert [each.range for each in read.candidates] == ["10.9.1.0/24", "10.9.2.0/24", "10.9.3.0/24"]
        server.forbidden = {"GET"}
        with pytest.raises(Refused, match="Forbidden"):
            await reading.read(Origin(kubernetes=True, kubeconfig=str(kubeconfig)))
        server.forbidden, server.nodes = set(), {}
        with pytest.raises(BadRequest, match="no Node"):
            await reading.read(Origin(kubernetes=True, kubeconfig=str(kubeconfig)))


async def test_leases_and_hosts_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "etcd.json").write_text(as_etcd(leases(7, 9)))
    (tmp_path / "hosts").write_text("192.0.2.7 alpha uid-7\n192.0.2.9 beta uid-9\n")
    origin = Origin(leases=str(tmp_path / "etcd.json"), hosts=str(tmp_path / "hosts"))
    read = await reading.read(origin)
    assert [(each.node, each.range) for each in read.candidates] == [
        ("alpha", "10.5.7.0/24"),
        ("beta", "10.5.9.0/24"),
    ]
    assert reading.repeatable(reading.kept(origin))
    (tmp_path / "hosts").unlink()
    assert not reading.repeatable(origin)
    assert not reading.repeatable(Origin(nodes="-"))


def test_the_access_is_kubectls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert reading.access("") is None
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    assert reading.access("") == tmp_path / ".kube" / "config"
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    assert reading.access("") == Path("/a")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert reading.access("") is None
    assert reading.access("said") == Path("said")


@pytest.mark.parametrize(
    ("release", "keep_name", "words"),
    [
        ("6.18.44-fc-v657", False, ""),
        ("6.2.0", False, ""),
        ("5.15.0-1051-aws", False, "--keep-name"),
        ("5.15.0-1051-aws", True, ""),
        ("4.18.0-553.el8_10.x86_64", True, "5.2"),
        ("4.18.0-553.el8_10.x86_64", False, "5.2"),
        ("", False, ""),
        ("unknown", False, ""),
    ],
)
def test_kernels_that_are_too_old_are_told_in_the_plan(release: str, keep_name: bool, words: str) -> None:
    items = k3s(3)
    items[1]["status"]["nodeInfo"]["kernelVersion"] = release
    report = planning.make(found(listed(*items)).candidates, Wish(keep_name=keep_name))
    if not words:
        assert report.plan is not None
        assert report.plan.keep_name is keep_name
        return
    (entry,) = report.findings
    assert (entry["node"], entry["code"]) == ("k3s-2", "adopt_kernel_old")
    assert words in entry["message"]
    assert release in entry["message"]
