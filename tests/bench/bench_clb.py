"""Through a gateway against straight to the backend, in one run: TCP throughput and rate of new connections.

A client, a gateway and two backends as namespaces on one bridge. The gateway's rules are the agent's
own. The two ways alternate, and each figure is the median of ROUNDS. A connection is opened, asked one
byte, answered and reset, one after another from one process: the client's and the server's own work is
in both figures. They alternate in blocks of BLOCK connections, and the median of the pairs' ratios counts:
what else runs on the machine meets both.

The targets hold on links of LINK_MBIT (shaped at every machine), as between real machines. Without
shaping, throughput is the processors': client, gateway and backend share this machine's few, and one more
machine on the way costs its share; that figure is reported without a target.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.bench.agent_place import row, run_inside

ROUNDS = 3
TCP_S = 1
LINK_MBIT = 1000
BLOCK, BLOCKS = 50, 60
HELD, PORT, RATE_PORT = "10.0.0.9", 5201, 5300
BACKENDS = ("10.0.0.3", "10.0.0.4")

_SERVER = f"""
import socket
s = socket.create_server(("0.0.0.0", {RATE_PORT}), backlog=1024)
while True:
    c, _ = s.accept()
    with c:
        try:
            c.sendall(c.recv(1))
        except OSError:
            pass
"""
_CLIENT = f"""
import json, socket, struct, sys, time
def block(address):
    started = time.perf_counter()
    for _ in range({BLOCK}):
        with socket.create_connection((address, {RATE_PORT}), timeout=5) as c:
            c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            c.sendall(b"?")
            assert c.recv(1)
    return {BLOCK} / (time.perf_counter() - started)
print(json.dumps([[block(address) for address in sys.argv[1:]] for _ in range({BLOCKS})]))
"""


def run() -> list[dict[str, Any]]:
    """Throughput (at least 0.8 of the direct way) and connection rate (at least 0.5)."""
    found = run_inside(__name__)
    return [
        row(f"CLB, gateway / direct: TCP, links of {LINK_MBIT} Mbit/s", found["gateway"]["link"],
            found["direct"]["link"], "Gbit/s", 0.8, better="higher"),
        row("CLB, gateway / direct: TCP, links without limit", found["gateway"]["tcp"],
            found["direct"]["tcp"], "Gbit/s", None, better="higher"),
        row("CLB, gateway / direct: new connections", found["gateway"]["rate"], found["direct"]["rate"], "1/s",
            0.5, better="higher"),
    ]  # fmt: skip


def body() -> dict[str, dict[str, float]]:
    """Runs inside the namespaces."""
    _machines()
    samples: dict[str, dict[str, list[float]]] = {}
    with _servers():
        for shaped in (False, True):
            if shaped:
                _shape()
            for number in range(ROUNDS):
                ways = [("direct", BACKENDS[0]), ("gateway", HELD)]
                for way, address in ways if number % 2 == 0 else reversed(ways):
                    figures = samples.setdefault(way, {"tcp": [], "link": []})
                    if shaped:
                        figures["link"].append(_tcp(address))
                    else:
                        figures["tcp"].append(_tcp(address))
            if not shaped:
                pairs = _rates(BACKENDS[0], HELD)
    found = {
        way: {name: statistics.median(values) for name, values in figures.items()}
        for way, figures in samples.items()
    }
    direct = statistics.median(direct for direct, _ in pairs)
    found["direct"]["rate"] = direct
    found["gateway"]["rate"] = direct * statistics.median(through / straight for straight, through in pairs)
    return found


def _sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=60).stdout


def _machines() -> None:
    _sh("ip link add wire type bridge && ip link set wire up")
    for name, address in (("c", "10.0.0.1"), ("g", "10.0.0.2"), *zip(("b1", "b2"), BACKENDS, strict=True)):
        _sh(f"""
            ip netns add {name}; ip -n {name} link set lo up
            ip link add v-{name} type veth peer name eth0 netns {name}
            ip link set v-{name} master wire up
            ip -n {name} addr add {address}/24 dev eth0; ip -n {name} link set eth0 up
        """)
    _sh("ip netns exec g sysctl -qw net.ipv4.ip_forward=1")
    code = f"import {__name__} as b; b.be_the_gateway()"
    subprocess.run(["ip", "netns", "exec", "g", sys.executable, "-c", code], check=True)


def be_the_gateway() -> None:
    """Runs in the gateway's namespace: the agent's own rules, and the address that it holds."""
    from nodeagent.firewall import ruleset
    from nodeagent.gateway import link, rules

    listeners = [
        rules.Listener(HELD, "tcp", port, stick, tuple((address, port) for address in BACKENDS))
        for port, stick in ((PORT, "source"), (RATE_PORT, "none"))
    ]
    asyncio.run(ruleset.nft(rules.render([HELD], listeners, 8472)))
    link.add(HELD, socket.if_nametoindex("eth0"), "eth0")


@contextlib.contextmanager
def _servers() -> Iterator[None]:
    servers = [
        subprocess.Popen(["ip", "netns", "exec", name, *command], stdout=subprocess.DEVNULL)
        for name in ("b1", "b2")
        for command in (["iperf3", "-s"], [sys.executable, "-c", _SERVER])
    ]
    try:
        deadline = time.monotonic() + 10
        for name in ("b1", "b2"):
            for port in (PORT, RATE_PORT):
                while f":{port}" not in _sh(f"ip netns exec {name} ss -ltn") and time.monotonic() < deadline:
                    pass
        yield
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def _shape() -> None:
    """Limit what each machine sends."""
    for name in ("c", "g", "b1", "b2"):
        _sh(
            f"ip netns exec {name} tc qdisc add dev eth0 root tbf rate {LINK_MBIT}mbit burst 256kb latency 20ms"
        )


def _tcp(address: str) -> float:
    found = json.loads(
        _sh(f"ip netns exec c iperf3 -J --connect-timeout 5000 -c {address} -p {PORT} -t {TCP_S}")
    )["end"]
    return float(found["sum_received"]["bits_per_second"]) / 1e9


def _rates(*addresses: str) -> list[list[float]]:
    """Connections a second to each address, block by block."""
    done = subprocess.run(
        ["ip", "netns", "exec", "c", sys.executable, "-c", _CLIENT, *addresses],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    rates: list[list[float]] = json.loads(done.stdout)
    return rates
