"""Ready means that a packet passed: what cuts a node's pods off is healed or named, and never called ready.

Real agents, a real bus, real filters and packets. Each test breaks ``a`` in a way of which 0.2.0 said "ready".
"""

from __future__ import annotations

import os
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Node, Site, site, until

pytestmark = pytest.mark.slow

HOOK = "{ type filter hook forward priority 0;"


def confirmed(*nodes: Node) -> None:
    for node in nodes:
        until(lambda: node.status()["path"] == "confirmed", f"{node.name}: a packet passed")  # noqa: B023


def blamed(node: Node, *words: str) -> str:
    """Wait until the node is degraded by a condition with all these words."""

    def found() -> str:
        status = node.status()
        assert status["state"] == "degraded", status["conditions"]
        return next((text for text in status["conditions"] if all(word in text for word in words)), "")

    try:
        return str(until(found, f"{node.name} is degraded: {words}"))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{node.status()['conditions']}\n{node.log()}") from error


def forwards(node: Node, device: str) -> bool:
    return node.run(f"cat /proc/sys/net/ipv4/conf/{device}/forwarding").strip() == "1"


def probed(node: Node) -> tuple[int, str]:
    """What Kubernetes' readiness probe of the shipped manifest gets from the agent: HTTP status and text."""
    code = (
        "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7481); c.request('GET', '/healthz'); "
        "a = c.getresponse(); print(a.status, a.read().decode())"
    )
    status, _, text = node.run(f'{sys.executable} -c "{code}"').partition(" ")
    return int(status), text


def broken_and_mended(place: Site, breaking: str, mending: str, *words: str) -> None:
    """``a`` says what is wrong, the others are not blamed, and it is ready once that is over."""
    a, *others = place.nodes.values()
    assert probed(a) == (200, "ok\n\n")
    a.run(breaking)
    blamed(a, *words)
    status, text = probed(a)
    assert status == 503
    assert all(word in text for word in ("degraded", *words))
    assert all(other.status()["state"] == "ready" for other in others), [
        o.status()["conditions"] for o in others
    ]
    a.run(mending)
    a.ready()
    confirmed(a)


@inside
def test_forwarding_that_is_fought_over_is_not_fought_for_ever() -> None:
    Path("/etc/sysctl.d").mkdir(exist_ok=True)
    sh("mount -t tmpfs none /etc/sysctl.d && echo net.ipv4.ip_forward = 0 > /etc/sysctl.d/99-hardening.conf")
    with site("a", "b") as place:
        a, _ = place.nodes.values()
        loop = "while :; do echo 0 > /proc/sys/net/ipv4/ip_forward; sleep 0.2; done"
        fight = sh(f"ip netns exec a sh -c '{loop}' >/dev/null 2>&1 & echo $!")
        blamed(a, "ip_forward", "again and again", "99-hardening.conf")
        os.kill(int(fight), signal.SIGKILL)


def a_forward_chain_that_drops_is_named_with_the_program_that_makes_it(place: Site) -> None:
    broken_and_mended(
        place,
        "sh -c 'iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER && iptables -P FORWARD DROP'",
        "iptables -P FORWARD ACCEPT",
        "path: packets that this node sends itself pass, its pods' do not",
        "FORWARD", "Docker", "iptables -I DOCKER-USER",
    )  # fmt: skip
    broken_and_mended(
        place,
        f"nft add table inet corp ';' add chain inet corp fw '{HOOK} policy drop; }}'",
        "nft delete table inet corp",
        "path:", "chain fw of table inet corp",
    )  # fmt: skip
    # Answers pass, what others begin does not.
    broken_and_mended(
        place,
        f"nft add table inet corp ';' add chain inet corp fw '{HOOK} }}' ';' "
        "add rule inet corp fw iifname isthmus ct state new drop",
        "nft delete table inet corp",
        "path: answers pass, connections that other nodes open to this node's pods do not",
    )


def a_policy_rule_that_leads_elsewhere_is_named(place: Site) -> None:
    broken_and_mended(
        place,
        "sh -c 'ip route add default dev eth0 table 77 && ip rule add to 172.16.0.0/16 lookup 77 pref 500'",
        "ip rule del pref 500",
        "path: packets for pods of other nodes do not take the tunnel", "by eth0",
        "500: from all to 172.16.0.0/16 lookup 77",
    )  # fmt: skip


def dropped_tunnel_packets_are_noticed(place: Site) -> None:
    broken_and_mended(
        place,
        "iptables -t raw -I PREROUTING -p udp --dport 8472 -j DROP",
        "iptables -t raw -F PREROUTING",
        "path: peers answer outside of the tunnel and not through it", "UDP port 8472",
    )  # fmt: skip


@inside
def test_what_stands_in_the_way_of_packets_is_named_and_nobody_else_is_blamed() -> None:
    with site("a", "b", "c") as place:
        confirmed(*place.nodes.values())
        a_forward_chain_that_drops_is_named_with_the_program_that_makes_it(place)
        a_policy_rule_that_leads_elsewhere_is_named(place)
        dropped_tunnel_packets_are_noticed(place)


@inside
def test_peers_that_answer_no_probe_are_no_alarm() -> None:
    """An agent of 0.2.0 on a host that drops what nobody asked for: not confirmed, and said so."""
    with site("a", "b", "c", start=False) as place:
        a, b, c = place.nodes.values()
        for silent in (b, c):
            silent.run("iptables -A INPUT -i isthmus -j DROP")
            silent.start().ready()
            silent.run("iptables -A FORWARD -i isthmus -j DROP")
        a.start().ready(2)
        until(
            lambda: any("not confirmed that packets pass" in text for text in a.status()["conditions"]),
            "it says so",
        )
        until(lambda: a.status()["path"] == "not confirmed", "not confirmed")
        assert a.status()["state"] == "ready"


def _silent(place: Site) -> str:
    shown = place.isthmus("node", "show", "a").stdout
    return shown if "silent" in shown else ""


def forwarding_switched_off_is_switched_on_again(place: Site) -> None:
    a, _ = place.nodes.values()
    confirmed(a)
    for device in ("all", "default", "isthmus", "eth0", "isthmus-probe"):
        a.run(f"sysctl -qw net.ipv4.conf.{device}.forwarding=0")
        until(lambda: forwards(a, device), f"{device} forwards again")  # noqa: B023
    a.run("sysctl -qw net.ipv4.ip_forward=0")
    a.run("ip link add pod0 type veth peer name pod1")
    a.run("ip link set pod0 up")
    pod = ip_address(a.vtep) + 9
    a.run(f"ip route add {pod}/32 dev pod0")
    a.run("sysctl -qw net.ipv4.ip_forward=1")
    a.run("sysctl -qw net.ipv4.conf.pod0.forwarding=0")
    until(lambda: forwards(a, "pod0"), "a pod's device forwards again")
    assert a.status()["counters"]["host_repairs"] >= 5


def a_cni_file_that_sorts_before_ours_is_named(place: Site) -> None:
    a, _ = place.nodes.values()
    other = a.directory / "cni" / "05-bridge.conf"
    other.write_text('{"cniVersion": "1.0.0", "name": "podman", "type": "bridge"}')
    blamed(a, "cni order", "05-bridge.conf", "network podman", "plugins bridge")
    other.unlink()
    a.ready()
    (a.directory / "cni" / "10-isthmus.conflist").unlink()
    until((a.directory / "cni" / "10-isthmus.conflist").exists, "our file is written again")


def a_probe_device_that_somebody_removes_is_made_again(place: Site) -> None:
    a, _ = place.nodes.values()
    confirmed(a)
    for damage in ("ip link del isthmus-probe", "ip link set isthmus-probe down"):
        a.run(damage)
        until(lambda: "LOWER_UP" in a.run("ip link show isthmus-probe"), f"{damage}: it is there again")
        before = a.status()["path_confirmed_at"]
        until(lambda: a.status()["path_confirmed_at"] > before + 1, "packets pass")  # noqa: B023
        a.ready()


def what_a_hung_agent_said_is_shown_as_what_was(place: Site) -> None:
    """0.2.0: "kernel: agrees, last report: now" for as long as it hung."""
    a, _ = place.nodes.values()
    confirmed(a)
    until(lambda: "in sync" in place.isthmus("node", "show", "a").stdout, "its kernel is judged")
    pid = int(a.status()["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        shown = until(lambda: _silent(place), "it is shown as silent")
        assert "in sync" in shown
        assert shown.count("stale") == 3, shown
        local = a.run(f"{ISTHMUS} agent status --state-dir {a.directory / 'state'}")
        assert "NOT RESPONDING" in local
        assert "as of" in local
        doctor = a.run(f"sh -c '{ISTHMUS} doctor --state-dir {a.directory / 'state'} || true'")
        assert "it has said nothing for" in doctor
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: "stale" not in place.isthmus("node", "show", "a").stdout, "it is back")


@inside
def test_a_peer_that_dies_is_no_fault_of_this_node() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        confirmed(a)
        b.stop(signal.SIGKILL)
        sh("ip link set v-b down")
        until(lambda: a.status()["path"] == "not confirmed", "the path is not confirmed any more", 90)
        assert a.status()["state"] == "ready"


@inside
def test_what_others_do_to_a_host_is_mended_or_told() -> None:
    """One site for all of it: each part leaves it as it was."""
    with site("a", "b") as place:
        forwarding_switched_off_is_switched_on_again(place)
        a_cni_file_that_sorts_before_ours_is_named(place)
        a_probe_device_that_somebody_removes_is_made_again(place)
        what_a_hung_agent_said_is_shown_as_what_was(place)
