"""Running fast flows follow every change of the node, announced or not, and no agent costs a packet."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent.fastpath.predecessors import FILE, LIBERAL
from tests.nodeagent.pods import Pod, ask
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Node, Site, site, until
from tests.nodeagent.talk import SECOND, counters, fast, hanging, talk

pytestmark = pytest.mark.slow


XDP = """
import ctypes, socket, sys
bpf = ctypes.CDLL("libbpf.so.1")
passing = bytes.fromhex("b700000002000000" "9500000000000000")  # r0 = XDP_PASS; exit
fd = bpf.bpf_prog_load(6, None, b"Apache-2.0", passing, ctypes.c_size_t(2), None)
assert fd > 0
index, flags, on = socket.if_nametoindex(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "on"
assert bpf.bpf_xdp_attach(index, fd if on else -1, flags, None) == 0
"""


@inside
def test_whatever_the_stack_refuses_ends_a_running_flow_and_others_programs_turn_it_off() -> None:
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
            with talk(one, two, port=port) as flow:
                fast(a, b)
                node.run(breaks)
                flow.ends_soon(f"{node.name}: {breaks}")
                node.run(mends)
                flow.flows()
                fast(a, b)
        what_others_attach_to_devices_turns_it_off_and_is_said(place, one, two)


def what_others_attach_to_devices_turns_it_off_and_is_said(place: Site, one: Pod, two: Pod) -> None:
    a, b = place.nodes.values()
    text = (
        "import socket, sys; from nodeagent.fastpath import libbpf, programs; p = programs.load(); "
        "index = socket.if_nametoindex(sys.argv[1]); "
        'libbpf.attach(p._loaded.programs["isthmus_br_rx"][0], index, int(sys.argv[2]))'
    )
    with talk(one, two) as flow:
        fast(a, b)
        veth = a.run(f"ip route show {one.address}").split()[2]
        a.run(f"tc qdisc add dev {veth} root pfifo")  # a queue that on other devices is nobody's
        until(lambda: "1 pod takes the stack, because it is shaped" in a.status()["fastpath"], "left out")
        a.run(f"tc qdisc del dev {veth} root")
        xdp = f"{sys.executable} -c '{XDP}'"
        for place_name, device, native, says in (
            ("a", "isthmus", 2, "handles packets of the tunnel device by XDP"),
            (one.name, "eth0", 4, "1 pod takes the stack, because it is handled by another eBPF program"),
        ):
            sh(f"ip netns exec {place_name} {xdp} {device} {native} on")
            until(lambda says=says: says in a.status()["fastpath"], says)
            sh(f"ip netns exec {place_name} {xdp} {device} {native} off")
            until(lambda: a.status()["fastpath"].startswith("on: 1 pod device, 1 peer"), "as before")
        first = flow.now()  # the kernel empties a pod's queue when its XDP program comes or goes
        a.run(f"{sys.executable} -c '{text}' {veth} 47")
        until(lambda: "handled by another eBPF program" in a.status()["fastpath"], "that pod is left out")
        a.run(f"{sys.executable} -c '{text}' isthmus 46")
        until(lambda: "another program" in a.status()["fastpath"], "it stands down")
        assert any("another program" in condition for condition in a.status()["conditions"])
        assert a.status()["state"] == "ready"
        a.stop()
        doctor = a.run(
            f"sh -c '{ISTHMUS} doctor --bus {place.bus} --state-dir {a.directory / 'state'} || true'"
        )
        assert "fast path" in doctor
        assert not flow.lost(first)


@inside
def test_an_agent_that_stops_is_killed_or_starts_loses_no_packet_and_takes_over() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        assert a.run(f"cat /proc/sys/{LIBERAL}").strip() == "1"
        a.run(f"sysctl -qw {LIBERAL}=0")  # as `sysctl --system` may, and fast connections would be cut off
        until(lambda: a.run(f"cat /proc/sys/{LIBERAL}").strip() == "1", "it is set again")
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        with talk(one, two) as flow:
            fast(a, b)
            first = flow.now()
            for number in (signal.SIGTERM, signal.SIGKILL):
                for node in (a, b):
                    node.stop(number)
                    flow.pause(SECOND)
                    # b as by the shipped unit, which may not look at programs: it knows its own by its file.
                    unit = "setpriv --bounding-set -all,+net_admin,+net_raw,+bpf"
                    node.start(by="" if node is a else unit).ready(1)
                    until(lambda: node.status()["fastpath"].startswith("on"), "on again")  # noqa: B023
                    fast(node)
                    assert hanging(node) == ["isthmus_net_rx", "isthmus_net_tx"], "one generation of programs"
            a_capture_goes_on_with_the_next_agent(a, one)
            assert not flow.lost(first)
            a.stop()
            kept = a.directory / "state" / FILE
            kept.write_text(json.dumps({**json.loads(kept.read_text()), "ids": [], "devices": []}))
            a.start("--fastpath", "off").ready(1)
            until(lambda: hanging(a) == [], "nothing is left of what is switched off")
            assert "switched off" in a.status()["fastpath"]
            assert not [text for text in a.status()["conditions"] if "fast path" in text]
            assert not flow.lost(first)
        a.stop()
        a.start().ready(1)
        until(lambda: hanging(a) != [], "on again")
        a.stop()
        said = a.run(
            f"{ISTHMUS} agent clean --yes --state-dir {a.directory / 'state'} --cni-dir {a.directory / 'cni'}"
        )
        assert "programs of the fast path" in said
        assert a.run(f"cat /proc/sys/{LIBERAL}").strip() == "0", "as it was before the agent"
        assert hanging(a) == []


def a_capture_goes_on_with_the_next_agent(node: Node, pod: Pod) -> None:
    words = "agent", "capture", "--pod", pod.address, "--seconds", "600"
    line = ["ip", "netns", "exec", node.name, ISTHMUS, *words]
    capture = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: counters(node)["held"] > 0, "it holds flows")
    node.stop()
    node.start().ready(1)
    until(lambda: counters(node)["held"] > 0, "it holds those of the new programs, too")
    capture.kill()
    capture.wait()
    fast(node)


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
