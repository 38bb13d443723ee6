"""What the doctor finds about the host: each with its cure. 0.2.0 said that all was well."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import msgspec
import pytest

from events.bus.connection import BusOptions
from nodeagent import status_text
from nodeagent.doctor import ExaminedNode, examine
from nodeagent.health import diagnosis, findings, settings
from nodeagent.local_files import LocalStatus, boot_id, now_of, running_s
from nodeagent.pods import chain, cni
from tests.nodeagent.sandbox import inside, sh


def status(**known: object) -> LocalStatus:
    return LocalStatus(node="a", uid="u", cluster="c", pid=1, started_at=0, written_at=0, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("set_by_s", [-10_800, 0, 10_800])
def test_ages_are_right_after_the_clock_was_set(set_by_s: float) -> None:
    """An agent that hangs for ten minutes while the clock is set looked alive, or silent for hours."""
    written = time.time() - 600 - set_by_s
    there = LocalStatus(
        node="a",
        uid="u",
        cluster="c",
        pid=1,
        started_at=0,
        state="ready",  # type: ignore[arg-type]
        written_at=written,
        bus_contact_at=written - 60,
        path="confirmed",
        path_confirmed_at=written,
        boot=boot_id(),
        written_running_s=running_s() - 600,
    )
    shown = dict(status_text.rows(there, running=True, now=now_of(there)))
    assert shown["state"].startswith("NOT RESPONDING since 10.0 min ago")
    assert "last word from the bus 11.0 min ago" in shown["behind"]
    assert "10.0 min ago" in shown["packets"]
    assert abs(now_of(msgspec.structs.replace(there, boot="another")) - time.time()) < 60


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [("maxPods: 250\n", "warning", "250"), ("kind: x\n", "warning", "110"), ("maxPods: 61\n", "ok", "61")],
)
def test_a_kubelet_that_starts_more_pods_than_there_are_addresses(
    tmp_path: Path, text: str, level: str, words: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    (found,) = findings.max_pods("172.16.0.0/26", config)
    assert (found.level, words in found.text) == (level, True)
    assert ("maxPods: 61" in found.fix) == (level == "warning")
    assert list(findings.max_pods("172.16.0.0/26", tmp_path / "none")) == []


def test_every_plugin_that_the_file_names_is_looked_for_and_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "CNI_DIRECTORIES", (str(tmp_path / "bin"),))
    (tmp_path / "bin").mkdir()
    for name in ("bridge", "host-local"):
        (tmp_path / "bin" / name).touch()
    cni.write(tmp_path, cni.conflist(cidr="172.16.0.0/26", mtu=1450, plugin="bridge"))
    found = {each.check: each for each in findings.plugins(status(cni_dir=str(tmp_path)))}
    assert found["cni"].level == "problem"
    assert "portmap, loopback (" in found["cni"].text
    assert "cni order" not in found
    (tmp_path / "00-other.conflist").write_text(
        json.dumps({"name": "theirs", "plugins": [{"type": "flannel"}]})
    )
    (order,) = (each for each in findings.plugins(status(cni_dir=str(tmp_path))) if each.check == "cni order")
    assert "network theirs, plugins flannel" in order.text
    assert order.fix == f"mv {tmp_path}/00-other.conflist /root/"


def test_our_own_plugin_is_missed_old_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(findings, "CNI_DIRECTORIES", (str(folder),))

    def found() -> findings.Finding:
        all_ = findings.plugins(status(cni_dir=str(tmp_path)))
        return next(each for each in all_ if each.check == "cni plugin")

    for name in ("ptp", "host-local", "portmap", "loopback"):
        (folder / name).touch(0o755)
    cni.write(tmp_path, cni.conflist(cidr="172.16.0.0/26", mtu=1450, plugin="ptp"))
    assert (found().level, found().fix) == ("info", "isthmus agent install-plugin")
    (folder / "isthmus").touch(0o755)
    assert (found().level, found().fix) == ("warning", "isthmus agent install-plugin")
    assert chain.install([str(folder)]) == [str(folder / "isthmus")]
    assert "does not name it" in found().text
    ours = chain.Chain(tail=({"type": "isthmus", "socket": "/x"},))
    cni.write(tmp_path, cni.conflist(cidr="172.16.0.0/26", mtu=1450, plugin="ptp", chain=ours))
    assert (found().level, "ends the chain" in found().text) == ("ok", True)
    (folder / "isthmus").unlink()
    missing = {each.check: each for each in findings.plugins(status(cni_dir=str(tmp_path)))}["cni"]
    assert (missing.level, missing.fix) == ("problem", "isthmus agent install-plugin")


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"plugins": 3}', b'"x"'])
def test_a_file_of_others_that_makes_no_sense_is_named_all_the_same(tmp_path: Path, content: bytes) -> None:
    (tmp_path / cni.FILE_NAME).touch()
    (tmp_path / "05-x.conf").write_bytes(content)
    assert "05-x.conf" in diagnosis.cni_before(tmp_path, cni.FILE_NAME)


@inside
def test_forwarding_and_chains_are_looked_at_as_the_kernel_has_them() -> None:
    sh("sysctl -qw net.ipv4.ip_forward=1")
    (fine,) = findings.forwarding("isthmus")
    assert fine.level == "ok"
    sh("sysctl -qw net.ipv4.conf.default.forwarding=0")
    (half,) = findings.forwarding("isthmus")
    assert (half.level, half.fix) == ("warning", "sysctl -w net.ipv4.conf.default.forwarding=1")
    (none,) = asyncio.run(findings.filters(("172.16.0.0/16",)))
    assert none.level == "ok"
    for iptables in ("iptables-nft", "iptables-legacy"):
        sh(f"{iptables} -N DOCKER-USER && {iptables} -P FORWARD DROP")
        found = asyncio.run(findings.filters(("172.16.0.0/16",)))
        assert [each.level for each in found] == ["warning"], iptables
        assert "Docker" in found[0].text
        sh(found[0].fix.replace("iptables ", f"{iptables} "))  # the cure works as it is printed
        assert "172.16.0.0/16" in sh(f"{iptables}-save")
        sh(f"{iptables} -P FORWARD ACCEPT")


@inside
def test_a_full_table_of_connections_is_named_with_its_cure() -> None:
    """What is full is moved, not the table: its size is one for all namespaces of the machine."""
    sh("nft 'table ip t { chain c { type filter hook output priority 0; ct state new; }; }'")
    sh("ip link set lo up && ping -c 1 127.0.0.1")
    assert not list(findings.connections())
    most = int(sh(f"sysctl -n {settings.CONNECTIONS_MAX}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "CONNECTIONS_SHARE", 1 / most)
        (found,) = findings.connections()
    assert (found.level, found.text[:27]) == ("problem", "the kernel tracks 1 connect")
    assert found.fix == f"sysctl -w {settings.CONNECTIONS_MAX}={2 * most}, and keep it in /etc/sysctl.d"


@inside
def test_a_table_of_neighbours_that_is_too_small_for_the_link_is_named() -> None:
    sh("ip link add eth0 type veth peer name far && ip addr add 10.7.0.1/16 dev eth0 && ip link set eth0 up")
    near = [f"10.7.{number // 250}.{2 + number % 250}" for number in range(600)]
    far = [f"10.8.{number // 250}.{2 + number % 250}" for number in range(2000)]
    (found,) = findings.neighbour_table("10.7.0.1", near + far, "1024")
    assert (found.level, found.text[:11]) == ("warning", "600 members")
    assert "gc_thresh3=4096 net.ipv4.neigh.default.gc_thresh2=2048" in found.fix
    (found,) = findings.neighbour_table("10.7.0.1", near[:400] + far, "1024")
    assert found.level == "ok"
    assert not list(findings.neighbour_table("10.7.0.1", far, "1024"))


@inside
def test_another_machine_with_the_nodes_own_address_is_named_by_its_mac() -> None:
    sh("ip link add eth0 type veth peer name far && ip addr add 10.7.0.1/16 dev eth0 && ip link set eth0 up")
    sh("ip link set far up")
    up = "timeout 60 sh -c 'until ip link show eth0 | grep -q LOWER_UP; do :; done'"
    sh(up)

    def said() -> list[str]:
        node = ExaminedNode(cluster="c", bus=BusOptions(), state_dir=Path("/nowhere"), underlay="eth0")
        found = asyncio.run(examine(node, bus=False))
        return [each.text for each in found if (each.check, each.level) == ("underlay", "warning")]

    assert said() == [], "its own other device on that link answers, too"
    sh("ip netns add copy && ip link set far netns copy")
    sh(f"ip -n copy link set far address 02:00:00:00:00:09 up && {up}")
    assert said() == []
    sh("ip -n copy addr add 10.7.0.1/16 dev far")
    assert "also the address of another machine on eth0, MAC 02:00:00:00:00:09" in said()[0]


@inside
def test_an_underlay_that_does_not_cut_packets_of_a_tunnel_is_named_with_its_cure() -> None:
    sh("ip link add u0 type veth peer name u1 && ip link set u0 up")
    (fine,) = findings.segmentation("u0")
    assert fine.level == "ok"
    sh("ethtool -K u0 tx-udp_tnl-segmentation off")
    (off,) = findings.segmentation("u0")
    assert (off.level, off.fix) == ("warning", "ethtool -K u0 tx-udp_tnl-segmentation on")
    sh(off.fix)
    assert list(findings.segmentation("u0")) == [fine]
    sh("ip link add d0 type vxlan id 7 local 127.0.0.1 dstport 8472")
    assert "tx-udp_tnl-segmentation: off [fixed]" in sh("ethtool -k d0")
    assert [found.level for found in findings.segmentation("d0")] == ["info"]
    assert list(findings.segmentation("none")) == []
