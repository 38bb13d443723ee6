"""Real connections through gateways: reached from everywhere, failed over, healed, never held by two."""

from __future__ import annotations

import json
import socket

import pytest

from deploy.lab.traffic.arp import both_answered_s
from tests.clb.place import BACKENDS, PORT, Lasting, Stream, back, cut, pair
from tests.nodeagent.sandbox import inside, sh
from tests.waiting import patient
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

FAILOVER_S = 5.0
HANDOVER_S = 1.0
FENCING_S = 3.0


@inside
def test_both_addresses_are_reached_from_everywhere_and_nothing_else_is() -> None:
    with pair("e1") as made:
        place = made.place
        sh(
            "ip netns add dc && ip link add v-dc type veth peer name eth0 netns dc && "
            "ip addr add 10.1.0.1/24 dev v-dc && ip link set v-dc up && "
            "ip -n dc addr add 10.1.0.2/24 dev eth0 && ip -n dc link set eth0 up && "
            "ip -n dc route add default via 10.1.0.1"
        )
        assert sorted(made.holders()) == ["g1", "g2"], "spread over the gateways"
        gateways = {"10.0.0.1", "10.0.0.2"}
        for purpose in ("apiserver", "public-services"):
            for backend in BACKENDS.values():
                made.cli("clb", "backend", "add", "main", purpose, str(PORT), backend, "--protocol", "udp")
        for address in made.addresses:
            until(lambda: made.ask(address, protocol="udp").split()[0] in BACKENDS, "UDP too")  # noqa: B023
            for protocol in ("tcp", "udp"):
                for within, source in (("dc", ""), ("e1", ""), ("e1", place.nodes["e1"].vtep), ("", "")):
                    name, seen = made.ask(address, within=within, source=source, protocol=protocol).split()
                    assert name in BACKENDS
                    assert seen in gateways, "replies return through the gateway"
            answers = {made.ask(address, within="dc").split()[0] for _ in range(30)}
            assert answers == set(BACKENDS), "balanced"
            made.cli(
                "clb", "backend", "add", "main", "apiserver", str(PORT), "10.0.0.101", "--affinity", "source"
            )
        until(lambda: len({made.ask(made.addresses[0]).split()[0] for _ in range(12)}) == 1, "affinity")
        # Losing the bus and the controller takes nothing away.
        place.down()
        stream = Stream("tests.clb.client", made.addresses[0], str(PORT))
        until(lambda: not place.nodes["g1"].status()["bus_connected"], "the loss is noticed")
        assert made.ask(made.addresses[1], within="dc").split()[0] in BACKENDS
        assert stream.stop().failed == 0


@inside
def test_planned_and_unplanned_failover_and_the_loss_of_a_backend() -> None:
    with pair() as made:
        first = made.addresses[0]
        holder = made.holders()[0]
        other = {"g1": "g2", "g2": "g1"}[holder]
        # Planned: by an operator's word, under a stream of new connections.
        stream = Stream("tests.clb.client", first, str(PORT))
        until(lambda: made.ask(first).split()[0] in BACKENDS, "flows")
        in_progress = [Lasting(first) for _ in range(4)]
        made.cli("clb", "gateway", "remove", holder)
        assert made.holders() == [other, other]
        until(lambda: f"inet {first}/" in made.place.nodes[other].run("ip addr show dev eth0"), "taken")
        until(lambda: f"inet {first}/" not in made.place.nodes[holder].run("ip addr show dev eth0"), "given up")
        made.wait_served(first)
        assert stream.stop().silence_s < patient(HANDOVER_S)
        for connection in in_progress:
            assert connection.ask() == connection.backend, "connections in progress go on through the former"
        made.cli("clb", "gateway", "add", holder)
        # A backend dies: a connection to the other one goes on, new ones avoid the dead one soon.
        for _ in range(20):
            lasting = socket.create_connection((first, PORT), timeout=2)
            lasting.sendall(b"?\n")
            if lasting.recv(100).split()[0] == b"b1":
                break
            lasting.close()
        made.stop_server("b2")
        until(lambda: [b["healthy"] for b in made.show()["backends"]].count(False) == 2, "recorded")
        stream = Stream("tests.clb.client", first, str(PORT))
        until(lambda: made.ask(first).split()[0] == "b1", "flows")
        # The other backend is taken away on purpose: what is in progress stays with it.
        made.serve("b2")
        until(lambda: all(b["healthy"] for b in made.show()["backends"]), "healthy again", 30)
        made.cli("clb", "backend", "remove", "main", "apiserver", str(PORT), BACKENDS["b1"])
        until(lambda: made.ask(first).split()[0] == "b2", "new connections go elsewhere")
        lasting.sendall(b"?\n")
        assert lasting.recv(100).split()[0] == b"b1"
        lasting.close()
        assert stream.stop().failed == 0
        # Unplanned: the machine is gone.
        stream = Stream("tests.clb.client", first, str(PORT))
        until(lambda: made.ask(first).split()[0] in BACKENDS, "flows")
        cut(made.place, other)
        until(lambda: made.holders() == [holder, holder], "reassigned")
        made.wait_served(first)
        assert stream.stop().silence_s < patient(FAILOVER_S)
        # The old holder comes back and does not fight.
        back(made.place, other)
        made.place.nodes[other].ready()
        until(lambda: f"inet {first}/" not in made.place.nodes[other].run("ip addr show dev eth0"), "yields")
        assert made.holders() == [holder, holder]
        history = json.loads(made.cli("replay", "history", "clb", "main", "--json"))
        told = json.loads(made.cli("replay", "who", "--ip", first, "--json"))
        assert told["holder"]["gateway"] == holder
        before = json.loads(
            made.cli("replay", "who", "--ip", first, "--at", str(told["holder"]["epoch"] - 2), "--json")
        )
        assert before["holder"]["gateway"] == other
        held = [s for s in history["steps"] if s["stamp"]["type"].startswith("clb.holder-assigned")]
        assert len(held) >= 4


@inside
def test_ten_failovers_in_a_row_and_a_gateway_that_leaves() -> None:
    with pair() as made:
        address = made.addresses[0]
        stream = Stream("tests.clb.client", address, str(PORT))
        in_progress = [Lasting(address) for _ in range(8)]
        for _ in range(10):
            holder = made.holders()[0]
            other = {"g1": "g2", "g2": "g1"}[holder]
            made.mark(holder, on=False)
            assert made.holders() == [other, other]
            until(lambda: f"inet {address}/" in made.place.nodes[other].run("ip addr show dev eth0"), "taken")  # noqa: B023
            made.wait_served(address)
            for connection in in_progress:
                assert connection.ask() == connection.backend, "both live: in progress it goes on"
            made.mark(holder, on=True)
        # The eleventh time it leaves the cluster altogether, and its machine lives on.
        leaving = made.holders()[0]
        made.cli("node", "remove", "--yes", leaving)
        staying = {"g1": "g2", "g2": "g1"}[leaving]
        assert made.holders() == [staying, staying]
        until(lambda: f"inet {address}/" not in made.place.nodes[leaving].run("ip addr show dev eth0"), "gone")
        made.wait_served(address)
        for connection in in_progress:
            assert connection.ask() == connection.backend, "its machine is no member any more, but lives"
        assert stream.stop().silence_s < patient(HANDOVER_S)
        assert made.cli("replay", "verify")


@inside
def test_a_split_is_over_within_the_fencing_time_and_epochs_decide() -> None:
    """The holder loses the bus but not the wire: it still believes, and yields to the announcement."""
    with pair() as made:
        address = made.addresses[0]
        holder = made.holders()[0]
        other = {"g1": "g2", "g2": "g1"}[holder]
        asking = Stream("deploy.lab.traffic.arp", "wire", address)
        stream = Stream("tests.clb.client", address, str(PORT))
        old = made.place.nodes[holder]
        old.run("nft add table ip cut")
        old.run("nft 'add chain ip cut out { type filter hook output priority 0; }'".replace("'", '"'))
        old.run("nft add rule ip cut out ip daddr 10.0.0.254 tcp dport 4222 drop")
        old.run("nft 'add chain ip cut in { type filter hook input priority 0; }'")
        old.run("nft add rule ip cut in ip saddr 10.0.0.254 tcp sport 4222 drop")
        until(lambda: made.holders() == [other, other], "reassigned")
        until(lambda: f"inet {address}/" in made.place.nodes[other].run("ip addr show dev eth0"), "taken")
        made.wait_served(address)
        assert f"inet {address}/" in old.run("ip addr show dev eth0"), "the old one still believes"
        until(lambda: address in old.run("nft list set arp isthmus_clb yielded"), "its kernel yields")
        made.wait_served(address)
        old.run("nft delete table ip cut")
        until(lambda: f"inet {address}/" not in old.run("ip addr show dev eth0"), "it learns and gives up", 30)
        assert made.holders() == [other, other]
        asking.stop()
        assert len({mac for _, mac in asking.found}) == 2
        assert both_answered_s(asking.found) < patient(FENCING_S)
        assert stream.stop().silence_s < patient(FAILOVER_S)
