"""The bus itself is split: the holder reaches only a server that has lost its majority.

That server led the log, so it goes on answering with what it knew while the other two elect a leader and
store that the address has another holder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.lab.traffic.arp import both_answered_s
from events import subjects
from events.bus.server.process import find_binary
from events.errors import Unavailable
from tests.clb.place import PORT, Stream, pair
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Site
from tests.waiting import patient
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

FENCING_S = 3.0
FAILOVER_S = 5.0
SHIPPED = Path(__file__).parents[2] / "deploy" / "nats" / "cluster.conf"
LEADING = """
import asyncio, json, sys, nats

async def main(bus, stream, preferred):
    client = await nats.connect(bus)
    body = json.dumps({"placement": {"preferred": preferred}}).encode()
    info = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
    leader = json.loads(info.data)["cluster"].get("leader")
    if leader and leader != preferred:
        await client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", body, timeout=5)
    await client.close()
    print(leader)

asyncio.run(main(*sys.argv[1:]))
"""


def server(number: int) -> str:
    return f"10.0.0.{200 + number}"


def nats(number: int) -> str:
    return f"nats://{server(number)}:4222"


class Replicated(Site):
    """Three servers as shipped, each on a machine of its own, and a controller that is with two of them."""

    bus = f"{nats(2)},{nats(3)}"

    def up(self, program: str = ISTHMUS) -> None:
        """See the class."""
        self.servers = [self._server(number) for number in (1, 2, 3)]
        with (self.directory / "up.log").open("ab") as log:
            data = ["--data", str(self.directory / "up")]
            self.controller = subprocess.Popen(
                [program, "controller", *data, "--bus", self.bus, "--replicas", "3"], stdout=log, stderr=log
            )
        define = "cluster define --cidr 172.16.0.0/16 --pods 64 --services 256 --quarantine 0"
        until(lambda: self.isthmus(*define.split()).returncode == 0, "the cluster is defined", 60)

    def _server(self, number: int) -> subprocess.Popen[bytes]:
        name = f"s{number}"
        sh(
            f"ip netns add {name} && ip -n {name} link set lo up && "
            f"ip link add v-{name} type veth peer name eth0 netns {name} && "
            f"ip link set v-{name} master wire up && "
            f"ip -n {name} addr add {server(number)}/24 dev eth0 && ip -n {name} link set eth0 up"
        )
        routes = ", ".join(f'"nats-route://{server(other)}:6222"' for other in (1, 2, 3))
        settings = {
            "ISTHMUS_SERVER_NAME": name,
            "ISTHMUS_LISTEN": f"{server(number)}:4222",
            "ISTHMUS_CLUSTER_LISTEN": f"{server(number)}:6222",
            "ISTHMUS_LEAF_LISTEN": f"{server(number)}:7422",
            "ISTHMUS_MONITOR": f"{server(number)}:8222",
            "ISTHMUS_ROUTES": f"[{routes}]",
            "ISTHMUS_STORE": str(self.directory / name),
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", name, find_binary(), "-c", str(SHIPPED)],
            env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def leads(self, number: int) -> bool:
        """Whether this server leads the log; it is asked to if it does not."""
        program = [sys.executable, "-c", LEADING, nats(2), subjects.stream("default"), f"s{number}"]
        said = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True)
        return said.stdout.strip() == f"s{number}"

    def down(self, number: int = signal.SIGTERM) -> None:
        """End the controller and the servers."""
        super().down(number)
        for process in self.servers:
            process.kill()
            process.wait(timeout=60)


@inside
def test_a_holder_on_the_minoritys_side_yields_within_the_fencing_time() -> None:
    with pair(kind=Replicated, options={"g1": ["--bus", nats(1)]}) as made:
        place = made.place
        assert isinstance(place, Replicated)
        address = made.addresses[0]
        assert made.holders()[0] == "g1"
        until(lambda: place.leads(1), "the first server leads the log")
        old, new = place.nodes["g1"], place.nodes["g2"]
        asking = Stream("deploy.lab.traffic.arp", "wire", address)
        stream = Stream("tests.clb.client", address, str(PORT))
        others = f"{{ {server(2)}, {server(3)} }}"
        cut = ["table ip cut"]
        for hook, side in (("input", "saddr"), ("output", "daddr")):
            cut.append(f"chain ip cut {hook} {{ type filter hook {hook} priority 0; }}")
            cut.append(f"rule ip cut {hook} ip {side} {others} drop")
        script = place.directory / "cut.nft"
        script.write_text("".join(f"add {line}\n" for line in cut))
        sh(f"ip netns exec s1 nft -f {script}")

        def given() -> bool:
            with suppress(Unavailable):  # the majority has no leader yet
                return made.holders() == ["g2", "g2"]
            return False

        until(given, "the majority gives the address to the other one", 60)
        until(lambda: f"inet {address}/" in new.run("ip addr show dev eth0"), "taken")
        until(lambda: address in old.run("nft list set arp isthmus_clb yielded"), "its kernel yields")
        made.wait_served(address)
        assert f"inet {address}/" in old.run("ip addr show dev eth0"), "the old one still believes"
        assert old.status()["bus_connected"], "it has a bus, and nothing tells it that it is the wrong one"
        sh("ip netns exec s1 nft delete table ip cut")
        until(lambda: f"inet {address}/" not in old.run("ip addr show dev eth0"), "it learns and gives up", 60)
        assert made.holders() == ["g2", "g2"]
        asking.stop()
        assert len({mac for _, mac in asking.found}) == 2
        both_s = both_answered_s(asking.found)
        print(json.dumps({"both_answered_s": both_s}))
        assert both_s < patient(FENCING_S)
        assert stream.stop().silence_s < patient(FAILOVER_S)
        assert made.cli("replay", "verify")
