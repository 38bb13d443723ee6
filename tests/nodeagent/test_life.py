"""An agent's life: restarts, absences of the bus, peers that change, a node that leaves and is cleaned."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import BUS, ISTHMUS, Node, Site, site
from tests.waiting import patient
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow


@inside
def test_restarts_of_any_process_touch_no_row_and_lose_no_packet() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        before, flow = (a.rows(), b.rows()), a.flow(b)
        for number in (signal.SIGTERM, signal.SIGKILL):
            a.stop(number)
            assert (a.rows(), b.rows()) == before
            a.start().ready(1)
            place.down(number)
            until(lambda: not a.status()["bus_connected"], "the loss is noticed")
            assert (a.rows(), b.rows()) == before
            place.up()
            until(lambda: a.status()["bus_connected"] and a.status()["state"] == "ready", "a is back")
        assert (a.rows(), b.rows()) == before
        assert flow.stop().lost == 0
        assert a.status()["counters"]["written"] == 0, "the restarted agent found everything in place"


@inside
def test_a_start_without_the_bus_goes_on_from_the_cache() -> None:
    with site("a", "b", "c") as place:
        a, b, _ = place.nodes.values()
        before, flow = a.rows(), a.flow(b)
        a.stop(signal.SIGKILL)
        place.down(signal.SIGKILL)
        a.run(f"ip neigh del {b.vtep} dev isthmus")  # damage while nobody looks
        a.run("nft delete table inet isthmus")
        started = time.time()
        a.start()
        until(lambda: a.status()["started_at"] >= started and a.status()["state"] == "ready", "ready")
        assert a.rows() == before, "what was damaged is repaired from the cache"
        until(lambda: b.underlay in a.run("nft list set inet isthmus vteps"), "and so is the firewall")
        status = a.status()
        assert not status["bus_connected"]
        assert status["applied"] == status["sequence"] > 0
        shown = a.run(f"{ISTHMUS} agent status --state-dir {a.directory}/state")
        assert "NOT connected" in shown
        assert "last word from the bus" in shown
        place.up()
        until(lambda: a.status()["bus_connected"], "the bus is back")
        a.ready(2)
        assert flow.stop().silence_s < patient(15)


@inside
def test_a_restart_while_the_underlay_is_away_or_contested_goes_on() -> None:
    """What would stop a first start only earns a complaint where rows are already at work."""
    with site("a", "b") as place:
        a, b = place.nodes.values()
        before = a.rows()
        a.stop()
        a.run("ip link del eth0")
        a.start()
        until(lambda: any("underlay" in text for text in a.status()["conditions"]), "it runs and says so", 60)
        assert a.rows() == before
        a.stop()
        a.plug()
        a.run("ip route add 172.16.9.0/26 via 10.0.0.254")
        a.start().ready(1)
        until(lambda: any("172.16.9.0/26" in text for text in a.status()["conditions"]), "it is told")
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass")


@inside
def test_a_node_cut_off_from_the_bus_keeps_its_rows_and_catches_up_in_order() -> None:
    with site("a", "b", "c") as place:
        a, b, c = place.nodes.values()
        before, flow = a.rows(), a.flow(b)
        leaver = c.status()["range"]
        chain = "add chain inet cut both { type filter hook input priority 0; }"
        a.run(f"nft 'add table inet cut; {chain}; add rule inet cut both tcp sport 4222 drop'")
        c.stop()
        assert place.isthmus("node", "remove", "--yes", "c").returncode == 0
        until(lambda: leaver not in str(b.rows()), "b follows")
        assert a.rows() == before, "a does not know, and has not changed"
        a.run("nft delete table inet cut")
        until(lambda: leaver not in str(a.rows()), "a catches up", 30)
        a.ready(1)
        until(lambda: a.status()["applied"] == b.status()["applied"], "both have applied the same events")
        assert flow.stop().lost == 0


@inside
def test_a_reinstalled_node_replaces_its_old_self_everywhere() -> None:
    """New uid, new VTEP MAC, new epoch: the old rows are gone, read back, on every peer."""
    with site("a", "b", "c") as place:
        a, b, c = place.nodes.values()
        old = b.status()
        healthy = a.flow(c)
        until(
            lambda: '"agent_state":"ready"' in place.isthmus("node", "show", "b", "--json").stdout,
            "b was heard",
        )
        b.stop(signal.SIGKILL)
        sh(f"rm -rf {b.directory}/state")
        b.run("ip link del isthmus")
        b.start()
        # Its old self was heard a moment ago: only a decision that names it ends it before it is silent. (On a
        # machine that takes long to start an agent it is silent by then.)
        told = "isthmus node fence b"
        until(
            lambda: told in b.log() or old["uid"] not in place.isthmus("node", "show", "b", "--json").stdout,
            "the refusal names the way out",
        )
        if told in b.log():
            assert place.isthmus("node", "fence", "b", "--yes", "--reason", "reinstalled").returncode == 0
        b.ready(2)
        new = b.status()
        assert new["uid"] != old["uid"]
        assert new["vtep_mac"] != old["vtep_mac"]
        assert new["epoch"] > old["epoch"]
        for peer in (a, c):
            until(lambda: new["vtep_mac"] in str(peer.rows()), "the new one is known")  # noqa: B023
            until(lambda: old["vtep_mac"] not in str(peer.rows()), "the old one is gone")  # noqa: B023
            assert old["range"] not in str(peer.rows())
            assert len(peer.rows()["fdb"]) == 2
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass to the new one")
        assert healthy.stop().lost == 0


@inside
def test_two_agents_with_one_state_directory_do_not_fight() -> None:
    with site("a") as place:
        a = place.nodes["a"]
        second = subprocess.run(
            ["ip", "netns", "exec", "a", ISTHMUS, "agent", "--node", "a", "--underlay", "eth0",
             "--metrics", "off", "--state-dir", str(a.directory / "state")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert "agent_running" in second.stderr
        a.ready(0)
        a_folder_that_cannot_be_written_is_told_by_the_bus_and_once(place, a)


def a_folder_that_cannot_be_written_is_told_by_the_bus_and_once(place: Site, a: Node) -> None:
    """As when its disk is full; the status file says nothing then."""
    state = a.directory / "state"
    in_its_place = state / f".status.json.{a.status()['pid']}.new"

    def shown() -> bool:
        return f"{state} cannot be written" in place.isthmus("node", "show", "a").stdout

    until(lambda: _made(in_its_place), "the next one cannot be written")
    until(shown, "the controller knows")
    before = a.log()
    sent = _heard_at(place)
    until(lambda: _heard_at(place) != sent, "it goes on reporting")
    assert a.log().count("cannot be written") == before.count("cannot be written") == 1
    in_its_place.rmdir()
    until(lambda: not shown(), "it is over")
    until(lambda: a.status()["conditions"] == [], "its own file says so, too")


def _made(folder: Path) -> bool:
    """Whether it is there, and not a file that is being written."""
    with contextlib.suppress(FileExistsError):  # as the folder or as the file
        folder.mkdir()
    return folder.is_dir()


def _heard_at(place: Site) -> str:
    found: str = json.loads(place.isthmus("node", "show", "a", "--json").stdout)["last_seen"]
    return found


@inside
def test_stop_keeps_and_clean_removes_everything_of_ours_and_nothing_else() -> None:
    with site("a", "b") as place:
        a, _ = place.nodes.values()
        a.run("ip route add 198.51.100.0/24 dev eth0 proto 99")
        a.run("nft add table inet theirs")
        left = a.run(f"{ISTHMUS} agent leave --yes --bus {BUS} --state-dir {a.directory}/state")
        assert "has left" in left
        until(lambda: any("taken off the cluster's list" in text for text in a.status()["conditions"]), "told")
        assert a.status()["state"] == "degraded"
        refused = _clean(a)
        assert refused.returncode == 1
        assert "agent_running" in refused.stdout + refused.stderr
        a.stop()
        assert a.rows()["routes"], "stopping keeps the rows"
        done = _clean(a)
        assert done.returncode == 0, done.stderr
        assert any("device isthmus" in what for what in json.loads(done.stdout)["removed"])
        assert a.run("ip route show proto 84") == ""
        assert "isthmus" not in a.run("ip link show")
        assert a.run("nft list tables") == "table inet theirs\n"
        assert list((a.directory / "cni").glob("*.conflist")) == []
        assert "198.51.100.0/24" in a.run("ip route show proto 99")
        assert json.loads(_clean(a).stdout) == {"removed": []}, "twice is harmless"


def _clean(node: Node) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", node.name, ISTHMUS, "agent", "clean", "--yes", "--json",
         "--state-dir", str(node.directory / "state"), "--cni-dir", str(node.directory / "cni")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@inside
def test_it_runs_with_cap_net_admin_alone() -> None:
    """From the first moment on by an ordinary user with nothing else, and down to it when started as root."""
    with site("a", "b") as place:
        a, b = place.nodes.values()
        for pid in _agents(a):
            assert _capabilities(pid) == {
                "CapEff": 1 << 12,
                "CapPrm": 1 << 12,
                "CapBnd": 1 << 12,
                "CapAmb": 1 << 12,
            }
        a.stop()
        a.run("ip link del isthmus")
        a.run("ip route flush proto 84")
        a.run("nft delete table inet isthmus")
        only = "--inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --bounding-set=-all,+net_admin"
        somebody = "--reuid 65534 --regid 65534 --clear-groups"
        if _may_run(somebody):
            sh(f"chown -R 65534:65534 {a.directory} && chmod 755 {place.directory}")
            only += f" {somebody}"
        a.start("--fastpath", "auto", by=f"setpriv {only}")
        a.ready(1)
        until(lambda: "vteps" in a.run("nft list table inet isthmus"), "nft runs by the same capability")
        (condition,) = a.status()["conditions"]
        assert condition.startswith("fast path: the kernel does not let this process load eBPF"), condition
        assert "CAP_BPF" in condition
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass")


def _may_run(who: str) -> bool:
    """Whether that user exists in this namespace and the checkout is not in a directory closed to them."""
    tried = ["setpriv", *who.split(), "--inh-caps=-all", "--bounding-set=-all", ISTHMUS, "--version"]
    return subprocess.run(tried, capture_output=True, timeout=60, check=False).returncode == 0


def _agents(node: Node) -> list[int]:
    return [int(node.status()["pid"])]


def _capabilities(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    names = ("CapEff", "CapPrm", "CapBnd", "CapAmb")
    return {
        name: int(value, 16) for name, _, value in (line.partition(":\t") for line in lines) if name in names
    }


@inside
def test_without_the_capability_it_says_so() -> None:
    done = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-all", ISTHMUS, "agent", "--underlay", "10.0.0.1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stderr
    assert "not_permitted" in done.stderr


@inside
def test_a_start_that_would_do_harm_is_refused() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.run("ip route add 172.16.9.0/24 via 10.0.0.254")
        b.run("ip link add theirs type vxlan id 100 dstport 8472 local 10.0.0.2")
        b.run("ip link set theirs up")
        for node, code, word in ((a, "route_conflict", "172.16.9.0/24"), (b, "overlay_conflict", "theirs")):
            node.start()
            assert node.agent is not None
            assert node.agent.wait(timeout=60) == 1, node.log()
            assert code in node.log()
            assert word in node.log()
        assert "isthmus" not in a.run("ip link show")
        a.run("ip route del 172.16.9.0/24")
        a.start().ready()
