"""Pod to pod encrypted, as a node does it, against plain WireGuard on the same path, in one run.

Each way has two hosts of its own (namespaces on a veth pair) with a pod each. ``plain WireGuard`` is a device
with two keys and a route, and nothing of ours. ``encrypted`` is what an agent makes: device, rows, the route
into WireGuard above the tunnel's, the nftables table, and the fast path, without which it is ``encrypted on the
whole stack``. ``tunnel in WireGuard`` is what it does not make:
VXLAN, whose outer packets WireGuard carries. By the kernel's module where there is one, else by `wireguard-go`,
whose own cost then hides part of the differences.

The blocks alternate within one process, as in :mod:`tests.bench.bench_agent_datapath`. Small packets are not
sent without limit, as there: `wireguard-go` shares the CPUs with who sends and who receives, so a sender that
never waits shows which of them the scheduler starves (plain WireGuard against a copy of itself: 0.94 to 1.54).
Here it waits while 256 packets are under way: what arrives is what the way can carry.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench import bench_agent_datapath as datapath
from tests.bench.agent_place import run_inside

ROUNDS = 21
EVERYTHING = 101
"""Per cent: a program that encrypts is another program to the blocks; none is thrown away for it."""
PLAIN, OURS, INSIDE = "plain WireGuard", "encrypted", "tunnel in WireGuard"
WHOLE = "encrypted on the whole stack"
COPY, BOTH = f"{PLAIN} copy", f"{PLAIN}, mean of two"
WAYS = (PLAIN, COPY, OURS, WHOLE, INSIDE)
FIGURES = {
    **{kind: datapath.FIGURES[kind] for kind in ("tcp1", "tcp4")},
    "window": ("UDP, 64 bytes, at most 256 under way", "packets/s", "higher"),
    "rtt": datapath.FIGURES["rtt"],
}
TARGETS = {"tcp1": 0.9, "tcp4": 0.9, "window": 0.9, "rtt": 1.1}
UDP_PORT = 51820


def run() -> list[dict[str, Any]]:
    """Every way against plain WireGuard."""
    datapath.DISTURBED_PERCENT = EVERYTHING
    blocks = [tuple(block) for block in run_inside(__name__)]
    blocks += _means(blocks)
    return [
        datapath._compare(
            *(blocks, way, kind, 3, FIGURES[kind], TARGETS[kind] if way == OURS else None),
            baseline=PLAIN if way == COPY else BOTH,
        )
        for way in WAYS[1:]
        for kind in TARGETS
    ]


def _means(blocks: list[datapath.Block]) -> list[datapath.Block]:
    """Of plain WireGuard and its copy, round by round: by chance the two differ by a quarter at times."""
    copies = {(number, kind): rest for number, way, kind, *rest in blocks if way == COPY}
    return [
        (number, BOTH, kind, (figure + other[0]) / 2, (cpu_us + other[1]) / 2, max(others, other[2]), tries)
        for number, way, kind, figure, cpu_us, others, tries in blocks
        if way == PLAIN and (other := copies.get((number, kind))) is not None and figure and other[0]
    ]


def body() -> list[datapath.Block]:
    """Runs inside the namespaces."""
    for place, way in enumerate(WAYS):
        _hosts(place, way)
    for place, way in enumerate(WAYS):  # sessions begin, and a way that carries nothing is found here
        datapath._sh(
            f"ip netns exec {place}p1 ping -c 2 -W 5 172.16.2.2 || {{ echo {way!r} fails >&2; exit 1; }}"
        )
    program = "/run/datapath"  # the namespaces' /run is a private tmpfs
    source = Path(__file__).with_name("agent_datapath.c")
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    datapath.WAYS, datapath.DISTURBED_PERCENT = WAYS, EVERYTHING
    return datapath._blocks(program, ROUNDS, "14rw")


def _hosts(place: int, way: str) -> None:
    hosts = [f"{place}h1", f"{place}h2"]
    pods = [f"{place}p1", f"{place}p2"]
    datapath._sh("mkdir -p /run/wireguard; " + "; ".join(f"ip netns add {name}" for name in hosts + pods))
    datapath._sh(f"ip link add u netns {hosts[0]} type veth peer name u netns {hosts[1]}")
    mtu = 1390 if way == INSIDE else 1440
    for number, host, pod in ((1, hosts[0], pods[0]), (2, hosts[1], pods[1])):
        own = f"172.16.{number}"
        datapath._sh(f"""set -e
            ip -n {host} link set lo up; ip -n {host} addr add 10.0.0.{number}/24 dev u
            ip -n {host} link set u up
            ip netns exec {host} sysctl -qw net.ipv4.ip_forward=1
            ip link add p netns {host} type veth peer name eth0 netns {pod}
            ip -n {host} link set p mtu {mtu} up; ip -n {pod} link set lo up
            ip -n {pod} link set eth0 mtu {mtu} up
            ip -n {host} addr add {own}.1/32 dev p; ip -n {host} route add {own}.2/32 dev p
            ip -n {pod} addr add {own}.2/32 dev eth0
            ip -n {pod} route add {own}.1 dev eth0; ip -n {pod} route add default via {own}.1
        """)
    for number, other, host in ((1, 2, hosts[0]), (2, 1, hosts[1])):
        code = f"from tests.bench.bench_encrypted import lead; lead({place}, {number}, {other}, {way!r})"
        subprocess.run(["ip", "netns", "exec", host, sys.executable, "-c", code], check=True)


def lead(place: int, number: int, other: int, way: str) -> None:
    """In a host's namespace: WireGuard, and what leads to it."""
    from nodeagent.membership.node_key import PrivateKey
    from nodeagent.wireguard import link, start
    from nodeagent.wireguard.device import PeerSettings
    from tests.nodeagent import host

    name = f"wg{place}{number}"
    kind, why_not = start.choose("auto")
    if kind is None:
        raise RuntimeError(why_not)
    device = kind(name)
    key, theirs = PrivateKey(bytes([number]) * 32), PrivateKey(bytes([other]) * 32)
    outer = f"10.1.0.{other}/32"
    allowed = (outer,) if way == INSIDE else (f"172.16.{other}.0/24",)
    device.create()
    device.configure(key.private, UDP_PORT)
    device.change({theirs.public: PeerSettings((f"10.0.0.{other}", UDP_PORT), allowed)}, [])
    address = f"10.1.0.{number}" if way == INSIDE else f"172.16.{number}.0"
    link.settle(name, link.Wanted(1440, address, host.DEVICE if way in {OURS, WHOLE} else ""))
    if way == INSIDE:
        datapath._sh(f"""set -e; ip route add {outer} dev {name}
            ip link add vx type vxlan id 77 dstport 8472 local {address} remote 10.1.0.{other}
            ip addr add 172.16.{number}.0/32 dev vx; ip link set vx mtu 1390 up
            ip route add 172.16.{other}.0/24 via 172.16.{other}.0 dev vx onlink""")
    elif way in {OURS, WHOLE}:
        host.prepare(number, other, fast=False)
        host.lead_into_wireguard(number, other, name=name, fast=way == OURS)
    else:
        datapath._sh(f"ip route add 172.16.{other}.0/24 dev {name}")
