"""Running fast flows follow every change of the node, announced or not, and no agent costs a packet."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.fastpath.predecessors import LIBERAL
from tests.nodeagent.pods import Pod, ask
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Node, site, until
from tests.nodeagent.talk import ECHO, SECOND, counters, fast, program_in, talk

pytestmark = pytest.mark.slow


def code(node: Node, text: str) -> str:
    return node.run(f"{sys.executable} -c '{text}'")


@inside
def test_whatever_the_stack_refuses_ends_a_running_flow_within_a_second() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        table = "table ip other { chain f { type filter hook forward priority 10; udp dport 9000 drop; }; }"
        rule = f"ip rule add from {one.address} blackhole"
        legacy = "iptables-legacy -w" if shutil.which("iptables-legacy") else "iptables -w"
        refused = "FORWARD -p udp --dport 9000 -j DROP"
        changes = (
            (a, f"nft '{table}'", "nft 'delete table ip other'"),
            (b, f"nft '{table}'", "nft 'delete table ip other'"),
            (a, rule, rule.replace("add", "del")),  # the kernel tells nobody whom we listen to
            (a, f"{legacy} -I {refused}", f"{legacy} -D {refused}"),  # nor does iptables of old
            (b, f"ip rule add to {two.address} blackhole", f"ip rule del to {two.address} blackhole"),
        )
        for port, (node, breaks, mends) in enumerate(changes, 5001):
            with talk(one, two, port) as flow:
                fast(a, b)
                node.run(breaks)
                flow.ends_soon(f"{node.name}: {breaks}")
                node.run(mends)
                flow.flows()
                fast(a, b)
        with talk(one, two) as flow:
            fast(a, b)
            assert place.isthmus("node", "remove", "--yes", "b").returncode == 0
            flow.ends_soon("the other node has left")


@inside
def test_a_pods_address_that_is_used_again_leads_to_the_new_pod_only() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        one, two, bystander = Pod(a, "pod-1"), Pod(b, "pod-2"), Pod(b, "pod-3")
        with talk(one, two) as flow:
            fast(a, b)
            seen = subprocess.Popen(
                ["ip", "netns", "exec", "pod-3", "tcpdump", "-i", "eth0", "-nn", "-l", "udp", "port", "9000"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            two.delete()
            flow.ends_soon("the pod is gone")
            sh(f"""set -e; ip netns add heir; ip -n heir link set lo up
                ip link add heir netns b type veth peer name eth0 netns heir
                ip -n b link set heir up; ip -n heir link set eth0 up
                ip -n b route add {two.address}/32 dev heir
                ip -n heir addr add {two.address}/32 dev eth0
                ip -n heir route add default dev eth0
                ip netns exec b sysctl -qw net.ipv4.conf.heir.proxy_arp=1""")
            echo = program_in("heir", ECHO, two.address, wait=True)
            flow.flows()
            fast(a, b)
            seen.terminate()
            assert bystander.address
            assert "9000" not in seen.communicate()[0]
            echo.kill()
            echo.wait()


@inside
def test_an_agent_that_stops_is_killed_or_starts_loses_no_packet_and_takes_over() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        assert a.run(f"cat /proc/sys/{LIBERAL}").strip() == "1"
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        with talk(one, two) as flow:
            fast(a, b)
            first = flow.now()
            for number in (signal.SIGTERM, signal.SIGKILL):
                for node in (a, b):
                    node.stop(number)
                    flow.pause(SECOND)
                    node.start().ready(1)
                    until(lambda: node.status()["fastpath"].startswith("on"), "on again", 20)  # noqa: B023
                    fast(node)
                    assert hanging(node) == ["isthmus_net_rx", "isthmus_net_tx"], "one generation of programs"
            assert not flow.lost(first)
            a.stop()
            a.start("--fastpath", "off").ready(1)
            until(lambda: hanging(a) == [], "nothing is left of what is switched off", 10)
            assert "switched off" in a.status()["fastpath"]
            assert not [text for text in a.status()["conditions"] if "fast path" in text]
            assert not flow.lost(first)
        a.stop()
        a.start().ready(1)
        until(lambda: hanging(a) != [], "on again", 10)
        a.stop()
        said = a.run(
            f"{ISTHMUS} agent clean --yes --state-dir {a.directory / 'state'} --cni-dir {a.directory / 'cni'}"
        )
        assert "programs of the fast path" in said
        assert a.run(f"cat /proc/sys/{LIBERAL}").strip() == "0", "as it was before the agent"
        assert hanging(a) == []


def hanging(node: Node) -> list[str]:
    """Names of our programs at the underlay of a node."""
    text = (
        'import socket; from nodeagent.fastpath import libbpf; index = socket.if_nametoindex("eth0"); '
        "print(*(libbpf.name_of(n) for hook in (46, 47) for n in libbpf.attached(index, hook)))"
    )
    return [name for name in code(node, text).split() if name.startswith("isthmus_")]


@inside
def test_programs_and_entries_that_somebody_removes_come_back() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.start("--resync", "1").ready()
        b.start().ready(1)
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        with talk(one, two) as flow:
            fast(a, b)
            first = flow.now()
            code(a, "import socket; from nodeagent.fastpath.programs import sweep; "
                 "print(sweep([index for index, _ in socket.if_nameindex()]))")  # fmt: skip
            fast(a)
            until(lambda: counters(a)["repaired"] >= 5, "each program is counted", 20)
            found = counters(a)["repaired"]
            code(a, "import socket; from nodeagent.fastpath import libbpf, layout; "
                 'index = socket.if_nametoindex("eth0"); number, = libbpf.attached(index, 46); '
                 'fd = libbpf.map_of(number, "peers"); keys = libbpf.dump(fd, 8, 16, 100); '
                 "[libbpf.drop(fd, key) for key in keys]; assert keys")  # fmt: skip
            until(lambda: counters(a)["repaired"] > found, "the entry is back", 20)
            fast(a)
            assert not flow.lost(first)


@inside
def test_a_capture_sees_fast_flows_and_ends_by_itself() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        with talk(one, two):
            fast(a, b)
            blind = a.run("sh -c 'timeout 1 tcpdump -i isthmus -nn -c 200 udp port 9000 2>/dev/null || true'")
            assert blind.count("9000") < 100, "fast packets pass the tunnel device by"
            seen = a.run(f"{ISTHMUS} agent capture --pod {one.address} --seconds 2 udp port 9000")
            assert seen.count(f"{one.address}.5000 > {two.address}.9000") > 50, seen[-2000:]
            assert counters(a)["held"] > 0
            fast(a)
        said = a.run(f"sh -c '{ISTHMUS} agent capture --device nope 2>&1 || true'")
        assert "there is no device nope" in said


@inside
def test_bridged_pods_are_fast_too() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.start("--cni-plugin", "bridge").ready()
        b.start().ready(1)
        one, two, other = Pod(a, "pod-1"), Pod(b, "pod-2"), Pod(a, "pod-3")
        with talk(one, two):
            fast(a, b)
            assert ask(other.name, "udp", two.address).startswith(f"{other.address} ")


@inside
def test_what_others_attach_to_devices_turns_it_off_and_is_said() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        text = (
            "import socket, sys; from nodeagent.fastpath import libbpf, programs; p = programs.load(); "
            "index = socket.if_nametoindex(sys.argv[1]); "
            'libbpf.attach(p._loaded.programs["isthmus_tun_rx"][0], index, int(sys.argv[2]))'
        )
        with talk(one, two) as flow:
            fast(a, b)
            first = flow.now()
            a.run(f"{sys.executable} -c '{text}' isthmus 46")
            until(lambda: "another program" in a.status()["fastpath"], "it stands down", 10)
            assert any("another program" in condition for condition in a.status()["conditions"])
            assert a.status()["state"] == "ready"
            a.stop()
            doctor = a.run(
                f"sh -c '{ISTHMUS} doctor --bus {place.bus} --state-dir {a.directory / 'state'} || true'"
            )
            assert "fast path" in doctor
            assert not flow.lost(first)


@inside
def test_without_libbpf_or_leave_it_says_so_once_and_require_refuses() -> None:
    with site("a", "b", start=False) as place:
        a, _ = place.nodes.values()
        hidden = Path("/run/nothing")
        hidden.write_bytes(b"")
        found = subprocess.run(
            ["sh", "-c", "ls /usr/lib/*/libbpf.so.1 /usr/lib64/libbpf.so.1 2>/dev/null"],
            capture_output=True, text=True, check=False,
        ).stdout.split()  # fmt: skip
        hide = Path("/run/hide")  # from the agent only: `ip` is linked with it
        hide.write_text(
            "".join(["#!/bin/sh\n", *(f"mount --bind {hidden} {path}\n" for path in found), 'exec "$@"\n'])
        )
        hide.chmod(0o755)
        a.start(by="unshare -m /run/hide").ready(0)
        (condition,) = a.status()["conditions"]
        assert "libbpf" in condition
        assert "apt-get install libbpf1" in condition
        a.stop()
        a.start("--fastpath", "require", by="unshare -m /run/hide")
        assert a.agent is not None
        assert a.agent.wait(timeout=30) != 0
        assert "apt-get install libbpf1" in a.log()
        assert "Traceback" not in a.log()
        a.agent = None
