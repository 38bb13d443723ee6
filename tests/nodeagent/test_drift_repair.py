"""Whatever is broken by hand heals within a second, and healthy peers notice nothing.

Real agents, a real bus, real packets. Each test breaks node ``a``; ``b`` is the peer that suffers, ``c``
the one that must not.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import BUS, ISTHMUS, Node, Site, site
from tests.waiting import patient
from tests.waiting import wait_for as until

HEAL_S = patient(1.0)
NOTICES = 20_000
"""Changes of routes whose notices do not fit the monitor's buffer (2 MiB, about 0.8 KiB each)."""

pytestmark = pytest.mark.slow


def repaired(node: Node, before: dict[str, list[str]]) -> None:
    try:
        until(lambda: node.rows() == before, f"the rows of {node.name} are as before")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{before}\n{node.rows()}\n{node.log()}") from error


def break_and_watch(place: Site, command: str, *, others_suffer: bool = False) -> None:
    """Run a command on ``a`` under traffic; ``b`` must be back in a second, ``c`` must not lose a packet."""
    a, b, c = place.nodes.values()
    before = a.rows()
    hurt, healthy = a.flow(b), a.flow(c)
    until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "the flow runs")
    a.run(command)
    repaired(a, before)
    until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), f"{command}: b answers again")
    until(lambda: b.run(f"ping -c1 -W1 -I {b.vtep} {a.vtep}"), f"{command}: a answers again")
    hurt.stop()
    healthy.stop()
    assert hurt.silence_s < HEAL_S, f"{command}: {hurt.silence_s:.2f} s of silence\n{a.log()}"
    if others_suffer:
        assert healthy.silence_s < HEAL_S, f"{command}: {healthy.silence_s:.2f} s of silence\n{a.log()}"
    else:
        assert healthy.lost == 0, f"{command}: a healthy peer lost {healthy.lost} packets"
    a.ready(2)


@inside
def test_rows_deleted_or_changed_by_hand() -> None:
    with site("a", "b", "c") as place:
        a, b, _ = place.nodes.values()
        status = b.status()
        cidr, mac, vtep = status["range"], status["vtep_mac"], b.vtep
        metric = int.from_bytes(bytes(int(part) for part in vtep.split(".")), "big")
        for command in (
            f"ip neigh del {vtep} dev isthmus",
            f"ip neigh replace {vtep} lladdr 66:66:66:66:66:66 dev isthmus nud permanent",
            f"ip neigh replace {vtep} lladdr {mac} dev isthmus nud reachable",
            f"bridge fdb del {mac} dev isthmus dst {b.underlay} self",
            f"bridge fdb replace {mac} dev isthmus dst 10.0.0.77 self permanent",
            f"bridge fdb replace {mac} dev isthmus dst {b.underlay} port 4789 self permanent",
            f"ip route del {cidr} proto 84",
            f"ip route replace blackhole {cidr} metric {metric}",
            f"ip route replace {cidr} via 10.0.0.254 dev eth0 metric {metric} proto 84",
            f"ip route replace {cidr} via {vtep} dev isthmus onlink metric {metric} proto 99",
        ):
            break_and_watch(place, command)
        until(lambda: a.status()["counters"]["repaired"] >= 10, "each repair is counted")
        counters = a.status()["counters"]
        for kind, least in (("neighbour", 3), ("fdb", 3), ("route", 4)):
            assert counters[f"drift_found_{kind}"] >= least, kind
            assert counters[f"drift_repaired_{kind}"] >= least, kind


@inside
def test_rows_added_by_hand_go() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        before, flow = a.rows(), a.flow(b)
        for command in (
            "bridge fdb append 00:00:00:00:00:00 dev isthmus dst 10.0.0.99 self permanent",
            "bridge fdb add 66:aa:aa:aa:aa:aa dev isthmus dst 10.0.0.98 self permanent",
            "ip neigh add 172.16.200.0 lladdr 66:aa:aa:aa:aa:aa dev isthmus nud permanent",
            "ip route add 172.16.200.0/26 dev isthmus proto 84",
        ):
            a.run(command)
            repaired(a, before)
        assert flow.stop().lost == 0


@inside
def test_damage_whose_notice_is_lost_is_found() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        before = a.rows()
        lose_notices(a, f"ip neigh del {b.vtep} dev isthmus")
        repaired(a, before)
        until(lambda: a.status()["counters"]["overflows"] >= 1, "the loss was noticed")
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass")


def lose_notices(node: Node, damage: str) -> None:
    """Hold the agent while more happens in its kernel than its socket can remember, and damage at the end."""
    pid = int(node.status()["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        batch = node.directory / "routes"
        networks = [f"198.{18 + n // 65536}.{n // 256 % 256}.{n % 256}/32" for n in range(NOTICES)]
        batch.write_text("".join(f"route add blackhole {network} proto 99\n" for network in networks))
        node.run(f"ip -batch {batch}")
        node.run(damage)
    finally:
        os.kill(pid, signal.SIGCONT)


@inside
def test_the_device_deleted_changed_or_down() -> None:
    with site("a", "b", "c") as place:
        a = place.nodes["a"]
        for command in (
            "ip link del isthmus",
            "ip link set isthmus down",
            "sh -c 'ip link set isthmus down; ip link set isthmus up'",
            "ip link set isthmus address 66:00:00:00:00:aa",
            "ip link set isthmus mtu 1200",
            f"ip addr del {a.vtep}/32 dev isthmus",
            "ip addr add 172.31.0.1/24 dev isthmus",
            "ip link set isthmus type vxlan id 100 local 10.0.0.99",
            "ip link set isthmus arp off",
            "sh -c 'ip link add br9 type bridge; ip link set isthmus master br9'",
        ):
            break_and_watch(place, command, others_suffer=True)
            until(lambda: "mtu 1450" in a.run("ip link show isthmus"), f"{command}: the MTU is back")
            until(lambda: a.run("ip -o -4 addr show isthmus").count("inet ") == 1, "one address")


@inside
def test_a_device_made_by_somebody_else_under_our_name() -> None:
    with site("a", "b", "c") as place:
        # The agent may be faster than the second command.
        theirs = "ip link add isthmus type vxlan id 7 dstport 4789; ip link set isthmus up || true"
        break_and_watch(place, f"sh -c 'ip link del isthmus; {theirs}'", others_suffer=True)


@inside
def test_the_underlay_goes_down_and_up_or_is_made_anew() -> None:
    with site("a", "b", "c") as place:
        a, b, _ = place.nodes.values()
        route = "ip route replace default via 10.0.0.254"
        up = f"sh -c 'ip link set eth0 up; {route}'"
        for away, back in (
            ("ip link set eth0 down", lambda: a.run(up)),
            ("ip link del eth0", a.plug),
        ):
            before = a.rows()
            a.run(away)
            until(lambda: any("underlay" in text for text in a.status()["conditions"]), "it says so")
            assert a.rows() == before, "nothing is flushed while the underlay is away"
            back()
            until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass")
            repaired(a, before)
            until(lambda: not any("underlay" in text for text in a.status()["conditions"]), "it is over")
            a.ready(2)


@inside
def test_the_underlay_address_changes() -> None:
    """The tunnel takes the new address at once, the cluster learns it, and the peers' rows follow."""
    with site("a", "b", "c") as place:
        a, b, c = place.nodes.values()
        flow, healthy = a.flow(b), b.flow(c)
        a.run("sh -c 'ip addr del 10.0.0.1/24 dev eth0; ip addr add 10.0.0.101/24 dev eth0; "
              "ip route replace default via 10.0.0.254'")  # fmt: skip
        for peer in (b, c):
            until(lambda: "dst 10.0.0.101" in str(peer.rows()["fdb"]), "the peers follow")  # noqa: B023
            assert not any("dst 10.0.0.1 " in row for row in peer.rows()["fdb"])
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass again")
        assert "local 10.0.0.101" in a.run("ip -d link show isthmus")
        assert flow.stop().silence_s < patient(3)
        assert healthy.stop().lost == 0
        assert a.status()["underlay"] == "10.0.0.101"


@inside
def test_the_underlay_mtu_changes() -> None:
    """The kernel never propagates it; the tunnel and the CNI file follow, down and up."""
    with site("a", "b") as place:
        a, b = place.nodes.values()
        flow = a.flow(b)
        for mtu in (1400, 1500, 1300):
            a.run(f"ip link set eth0 mtu {mtu}")
            until(lambda: f"mtu {mtu - 50} " in a.run("ip link show isthmus"), "the tunnel follows")  # noqa: B023
            until(lambda: f'"mtu": {mtu - 50}' in conflist(a), "the CNI file follows")  # noqa: B023
            size = mtu - 50 - 28
            a.run(f"ping -c1 -W1 -M do -s {size} -I {a.vtep} {b.vtep}")
            with pytest.raises(AssertionError, match="too long"):
                a.run(f"ping -c1 -W1 -M do -s {size + 1} -I {a.vtep} {b.vtep}")
        assert flow.stop().lost == 0
        # What the link's MTU does not say is the doctor's to find: a way to one peer that passes less.
        assert "1300 bytes pass in one piece, 1250 inside" in doctor(a, 0)
        a.stop()  # it would find it out itself, and give the route that MTU
        a.run(f"ip route add {b.underlay}/32 dev eth0 mtu 1200")
        a.run("ip route add 172.16.200.0/24 via 10.0.0.254")
        found = doctor(a, 1)
        assert "the route 172.16.200.0/24 overlaps the container network" in found
        assert "at most 1200 bytes pass in one piece, the tunnel sends 1300" in found
        assert "--mtu 1150" in found


def doctor(node: Node, code: int) -> str:
    place = f"--bus {BUS} --state-dir {node.directory}/state --underlay eth0"
    return node.run(f"sh -c '{ISTHMUS} doctor {place}; test $? -eq {code}'")


def conflist(node: Node) -> str:
    (path,) = (node.directory / "cni").glob("*.conflist")
    return path.read_text()


@inside
def test_a_program_that_keeps_rewriting_a_row_is_reported_and_not_fought_for_ever() -> None:
    with site("a", "b", "c") as place:
        a, b, c = place.nodes.values()
        before, healthy = a.rows(), a.flow(c)
        until(lambda: "in sync" in shown(place, a), "kernel and log agree")

        def rewrite() -> None:
            a.run(f"ip neigh replace {b.vtep} lladdr 66:66:66:66:66:66 dev isthmus nud permanent")

        def contested() -> bool:
            rewrite()
            return any("rewritten" in text for text in a.status()["conditions"])

        until(contested, "it gives up for now")
        repaired = a.status()["counters"]["repaired"]
        assert 3 <= repaired <= 12
        for _ in range(20):
            rewrite()
        assert a.status()["counters"]["repaired"] <= repaired + 1

        # As long as it goes on, the node says so, and so does the controller, with the row.
        def told() -> bool:
            rewrite()
            status, node = a.status(), shown(place, a)
            return (
                status["state"] == "degraded"
                and status["kernel_digest"] != status["expected_digest"]
                and "DIFFERS" in node
                and f"neighbour {b.vtep}" in node
                and "kernel_differs" in place.isthmus("cluster", "show", "--json").stdout
            )

        until(told, "the difference is told")
        assert "in sync" in shown(place, b)
        assert healthy.stop().lost == 0
        until(lambda: a.rows() == before, "peace heals the row in the end", 60)
        until(lambda: a.status()["state"] == "ready", "and the complaint is over")
        until(lambda: "in sync" in shown(place, a), "for the controller, too")
        assert "kernel_differs" not in place.isthmus("cluster", "show", "--json").stdout


def shown(place: Site, node: Node) -> str:
    return place.isthmus("node", "show", node.name).stdout


@inside
def test_a_foreign_route_that_draws_traffic_away_is_told() -> None:
    """It wins by its metric, and is not ours to remove: but nobody is left to guess."""
    with site("a", "b") as place:
        a, b = place.nodes.values()
        cidr = b.status()["range"]
        a.run(f"ip route add {cidr} via 10.0.0.254")
        until(lambda: any(cidr in text for text in a.status()["conditions"]), "it is told")
        a.run(f"ip route del {cidr} via 10.0.0.254")
        a.run("ip link set isthmus mtu 1300")  # any reason to look again; the timer is another
        until(lambda: not a.status()["conditions"], "it is over")
        a.run(f"ip route add {a.vtep[:-1]}9/32 dev eth0")  # a pod of the own range is no conflict
        a.run("ip link set isthmus mtu 1300")
        until(lambda: a.status()["mtu"] == 1450 and not a.status()["conditions"], "nothing to complain about")
