"""What happens to ranges, links, pods and Services while fast flows run, with real agents on one site.

Each flow is judged anew within a second, and nothing is delivered to another pod than the stack would choose.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyroute2 import NFCTSocket

from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node, Site, site, until
from tests.nodeagent.talk import SECOND, Talk, counters, echo, fast, talk
from tests.nodeagent.twins import within
from tests.waiting import patient

pytestmark = pytest.mark.slow

PLAN = ("172.16.0.0/24", 64, 32)
"""Three ranges: a fourth node gets one that another had."""
SERVICE = "172.16.0.240"
SEEN = """
table ip seen {
  counter datagrams {}
  chain c { type filter hook input priority 0; udp dport 9000 counter name datagrams; }
}
"""


@dataclass
class Place:
    """Pods one and five on node a, two and three on b, four on c."""

    site: Site
    a: Node
    b: Node
    c: Node
    one: Pod
    two: Pod
    three: Pod
    four: Pod
    five: Pod


def watched(node: Node, name: str) -> Pod:
    pod = Pod(node, name)
    pod.run(f"nft '{SEEN}'")
    return pod


def seen(pod: Pod) -> int:
    """How many datagrams have reached a pod's port 9000."""
    return int(pod.run("nft list counter ip seen datagrams").partition("packets ")[2].split()[0])


def translate(node: Node, rule: str) -> None:
    """Somebody's only rule that translates; it replaces the one before."""
    chain = f"chain p {{ type nat hook prerouting priority dstnat; {rule}; }}"
    node.run(f"nft 'add table ip proxy; delete table ip proxy; table ip proxy {{ {chain}; }}'")


def forget(node: Node) -> None:
    """What a Service proxy does when a backend goes: connections are forgotten. The kernel tells nobody."""
    with within(node.name), NFCTSocket() as tracking:
        tracking.flush()


def leaves_fast(node: Node) -> None:
    """Packets leave by the fast path of this node, where nothing translates them."""
    before = counters(node)["fast_out"]
    until(lambda: counters(node)["fast_out"] > before + 20, f"fast packets leave {node.name}")


def leads(flow: Talk, to: Pod, *no_more: Pod, by: Node) -> None:
    """A node's rule leads the flow to another pod within a second once connections are forgotten.

    They are forgotten until then: an answer under way that comes first makes the connection the other way
    round. To ``no_more`` nothing goes afterwards.
    """
    start, before = flow.now(), seen(to)

    def reached() -> bool:
        forget(by)
        return seen(to) > before

    until(reached, f"{to.name} is reached", 60)
    assert flow.now() - start < patient(SECOND), f"{to.name}: {flow.now() - start} packets later"
    flow.flows()
    before_it = [seen(pod) for pod in no_more]

    def translated_back() -> bool:
        """An answer that was under way when connections were last forgotten made one the other way round."""
        wrong = len(flow.numbers("wrong"))
        flow.pause(SECOND // 4)
        flow.flows()
        if len(flow.numbers("wrong")) == wrong:
            return True
        forget(by)
        return False

    until(translated_back, f"the answers of {to.name} are translated back", 60)
    assert [seen(pod) for pod in no_more] == before_it, f"only {to.name} is reached now"


@inside
def test_running_flows_follow_whatever_happens_to_nodes_links_pods_and_services() -> None:
    with site("a", "b", "c", plan=PLAN) as found:
        a, b, c = found.nodes.values()
        place = Place(
            found, a, b, c, watched(a, "pod-1"), watched(b, "pod-2"), watched(b, "pod-3"), watched(c, "pod-4"),
            watched(a, "pod-5"),
        )  # fmt: skip
        our_table_is_deleted_and_written_anew(place)
        a_service_gets_another_backend(place)
        a_running_flow_is_translated_from_now_on(place)
        a_port_of_a_node_leads_to_another_pod(place)
        the_link_gets_narrower_and_wide_again(place)
        the_underlay_address_moves_to_another_link(place)
        an_address_is_used_again(place)
        a_node_is_fenced_and_another_gets_its_range(place)
        a_node_leaves_and_its_range_drains(place)


def our_table_is_deleted_and_written_anew(place: Place) -> None:
    with talk(place.one, place.two) as flow:
        fast(place.a, place.b)
        first = flow.now()
        for node in (place.a, place.b):
            voided = counters(node)["generations"] + 2  # when it goes, and when it comes
            node.run("nft delete table inet isthmus")
            node.admits(2)
            until(lambda: counters(node)["generations"] >= voided, "verdicts are void")  # noqa: B023
        fast(place.a, place.b)
        assert not flow.lost(first)


def a_service_gets_another_backend(place: Place) -> None:
    """As kube-proxy does it: other rules, then the connections to the old backend are forgotten."""

    def backend(pod: Pod) -> None:
        rule = f"ip daddr {SERVICE} udp dport 80 dnat to {pod.address}:9000"
        translate(place.a, rule)

    backend(place.two)
    with talk(place.one, place.two, place.three, place.four, to=(SERVICE, 80)) as flow:
        leaves_fast(place.b)
        assert not flow.numbers("wrong")
        backend(place.three)
        leads(flow, place.three, place.two, by=place.a)
        leaves_fast(place.b)
        backend(place.four)
        leads(flow, place.four, place.two, place.three, by=place.a)
        leaves_fast(place.c)
        place.a.run("nft delete table ip proxy")
        forget(place.a)
        flow.ends_soon("the Service is gone")


def a_running_flow_is_translated_from_now_on(place: Place) -> None:
    """A rule for the very address and port of a fast flow; nobody is told when connections are forgotten."""
    rule = f"ip daddr {place.two.address} udp dport 9000 dnat to {place.three.address}"
    for node in (place.a, place.b):
        with talk(place.one, place.two, place.three) as flow:
            fast(place.a, place.b)
            translate(node, rule)
            fast(place.a, place.b)  # the connection is still the old one
            leads(flow, place.three, place.two, by=node)
            node.run("nft delete table ip proxy")
            leads(flow, place.two, place.three, by=node)
            fast(place.a, place.b)


def a_port_of_a_node_leads_to_another_pod(place: Place) -> None:
    """As the portmap plugin does it, reached through the tunnel by the node's own address."""

    def port(pod: Pod) -> None:
        translate(place.a, f"fib daddr type local udp dport 8080 dnat to {pod.address}:9000")

    port(place.one)
    with talk(place.two, place.one, place.five, to=(place.a.vtep, 8080)) as flow:
        leaves_fast(place.b)
        assert not flow.numbers("wrong")
        port(place.five)
        leads(flow, place.five, place.one, by=place.a)
        place.a.run("nft delete table ip proxy")
        forget(place.a)
        flow.ends_soon("the port is closed")


def the_link_gets_narrower_and_wide_again(place: Place) -> None:
    with talk(place.one, place.two, more=1390) as flow:
        fast(place.a, place.b)
        sh("ip -n a link set eth0 mtu 1400")
        flow.ends_soon("packets are too large for the link")
        assert flow.numbers("refused"), "and the pod is told so"
        sh("ip -n a link set eth0 mtu 1500")
    # A pod that is told of the narrow way while the agent widens it believes that for ten minutes.
    until(lambda: is_wide(place.a) and is_wide(place.b), "the way is wide again", 60)
    with talk(place.one, place.three, more=1390):  # to another pod: of this one it remembers the MTU
        fast(place.a, place.b)


def is_wide(node: Node) -> bool:
    """Whether neither the node's tunnel nor its route to any peer passes less than the underlay carries."""
    wide = f" mtu {1500 - 50} "
    return wide in node.run("ip link show isthmus") and " mtu " not in node.run("ip route show proto 84")


def the_underlay_address_moves_to_another_link(place: Place) -> None:
    sent = Path("/sys/class/net/eth0/statistics/tx_packets")
    with talk(place.one, place.two) as flow:
        fast(place.a, place.b)
        sh("""set -e; ip link add v-a1 type veth peer name eth1 netns a; ip link set v-a1 master wire up
            ip -n a link set eth1 up
            ip -n a addr del 10.0.0.1/24 dev eth0; ip -n a addr add 10.0.0.1/24 dev eth1
            ip -n a route add default via 10.0.0.254""")
        start = flow.now()
        flow.flows()

        def leaving() -> int:
            return int(place.a.run(f"cat {sent}"))

        def left() -> bool:
            before = leaving()
            flow.pause(SECOND // 4)
            return leaving() - before < SECOND // 40

        until(left, "nothing leaves by the old link", 60)
        assert flow.now() - start < patient(2 * SECOND)
        sh("ip -n a link set eth0 down; ip -n b neigh flush dev eth0; ip -n c neigh flush dev eth0; "
           "ip neigh flush dev wire")  # fmt: skip  # what a bond announces when it moves
        flow.flows()
        fast(place.a, place.b)


def an_address_is_used_again(place: Place) -> None:
    with talk(place.one, place.three, port=5001) as flow:
        fast(place.a, place.b)
        others = place.two, place.four
        counts = [seen(pod) for pod in others]
        address = place.three.address
        place.three.delete()
        flow.ends_soon("the pod is gone")
        sh(f"""set -e; ip netns add heir; ip -n heir link set lo up
            ip link add heir netns b type veth peer name eth0 netns heir
            ip -n b link set heir up; ip -n heir link set eth0 up
            ip -n b route add {address}/32 dev heir
            ip -n heir addr add {address}/32 dev eth0
            ip -n heir route add default dev eth0
            ip netns exec b sysctl -qw net.ipv4.conf.heir.proxy_arp=1""")
        with echo("heir", address):
            flow.flows()
            fast(place.a, place.b)
        assert [seen(pod) for pod in others] == counts


def a_node_is_fenced_and_another_gets_its_range(place: Place) -> None:
    """The agent of the fenced node is dead, and its kernel goes on: its pods get and send nothing any more."""
    with talk(place.one, place.two) as flow, talk(place.two, place.one, port=6000) as back:
        fast(place.a, place.b)
        place.b.stop(signal.SIGKILL)
        assert place.site.isthmus("node", "fence", "--yes", "b").returncode == 0
        flow.ends_soon("the other node is fenced")
        back.ends_soon("the other node is fenced")
        counts = seen(place.one), seen(place.two)
        (d,) = place.site.add("d")
        d.start().ready(2)
        heir = watched(d, "pod-6")
        assert heir.address == place.two.address
        with echo(heir.name, heir.address):
            flow.flows()
            fast(place.a, d)
        assert seen(heir) > 0
        assert (seen(place.one), seen(place.two)) == counts


def a_node_leaves_and_its_range_drains(place: Place) -> None:
    with talk(place.one, place.four) as flow:
        fast(place.a, place.c)
        assert place.site.isthmus("node", "remove", "--yes", "c").returncode == 0
        flow.ends_soon("the other node has left")
