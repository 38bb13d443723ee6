"""Who is listed by an entry reaches pods and ClusterIPs through a gateway, and nobody else does.

Node 1 is the gateway; hosts 66 and 67 send what they do not know to it. With and without the fast path.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from ipaddress import ip_address, ip_network

from tests.nodeagent import host
from tests.nodeagent.kube_proxy import Service
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.service_network import ANSWER_S, PODS, Network, Question, network
from tests.nodeagent.twins import within

LISTED, STRANGER = "10.0.0.66", "10.0.0.67"
P1, P2 = PODS["p1"], PODS["p2"]
HERE = Service("here", "172.16.255.10", 30080, "203.0.113.10", (P1,))
ELSEWHERE = Service("elsewhere", "172.16.255.11", 30081, "203.0.113.11", (P2,))
TARGETS = (P1[1], P2[1], HERE.cluster_ip, ELSEWHERE.cluster_ip)


def gateway(*sources: str) -> None:
    """Node 1 lets these in from now on."""
    with within("n1"):
        host.protect(1, 2, entries=sources)


def place() -> Network:
    """Both hosts know node 1 as their router; a pod pretends to be the listed one, too."""
    made = network()
    sh("ip -n f67 route replace default via 10.0.0.1")
    sh(f"ip -n q1 addr add {LISTED}/32 dev eth0 && ip -n q1 addr add {STRANGER}/32 dev eth0")
    made.proxy("nftables", "ClusterCIDR", (HERE, ELSEWHERE))
    return made


def asked(source: str, *, claimed: str = "") -> list[Question]:
    return [Question(source, target, 80, claimed) for target in TARGETS]


@inside
def test_listed_sources_reach_pods_and_cluster_ips_and_nobody_else_does() -> None:
    made = place()
    own = ip_network(host.own_range(1))
    hosts = []
    for node in ("n1", "n2"):  # whatever reaches a node itself is heard there
        with within(node):
            hosts += [socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_server(("", 80))]
        hosts[-2].bind(("", 80))
    for fast in (False, True):
        made.fast(fast)
        for kind in ("udp", "tcp"):
            gateway()
            made.ask(kind, [Question("q1", P1[1])], [*asked("f66"), *asked("f67")])
            gateway(f"{LISTED}/32")
            refused = [*asked("f67"), *asked("q1", claimed=LISTED), *asked("q1", claimed=STRANGER)]
            refused += [
                Question("f66", f"172.16.{node}.{own}") for node in (1, 2) for own in (0, 1)
            ]  # the nodes'
            found = made.ask(kind, asked("f66"), refused)
            assert {q.target: a.pod for q, a in found.items()} == dict(
                zip(TARGETS, ("p1", "p2") * 2, strict=True)
            )
            seen = {answer.seen for answer in found.values()}
            assert all(ip_address(address) in own for address in seen), f"through the gateway: {seen}"
            assert not heard(hosts), "no node is reached by its container addresses"
            # Through a node that is no gateway nobody comes in, listed or not.
            sh("ip -n f66 route replace default via 10.0.0.2")
            made.ask(kind, [Question("q2", P1[1])], asked("f66"))
            sh("ip -n f66 route replace default via 10.0.0.1")


@inside
def test_pods_answer_and_open_nothing_with_their_own_address() -> None:
    place()
    gateway(f"{LISTED}/32")
    with within("f66"):
        listening = socket.create_server((LISTED, 90))
    listening.settimeout(ANSWER_S)
    for pod, node in (("p1", "10.0.0.1"), ("p2", "10.0.0.2")):
        with within(pod), socket.create_connection((LISTED, 90), timeout=ANSWER_S):
            accepted, peer = listening.accept()
            accepted.close()
            assert peer[0] == node, "as before: with the node's address"


def connection(target: str, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """One from the listed host to a server in the pod, both ends."""
    pod = next(name for name, (_, address) in PODS.items() if address == target)
    with within(pod):
        server = socket.socket(socket.AF_INET, kind)
        server.bind((target, 91))
    with within("f66"):
        client = socket.socket(socket.AF_INET, kind)
    if kind == socket.SOCK_STREAM:
        server.listen()
        client.settimeout(ANSWER_S)
        client.connect((target, 91))
        accepted = server.accept()[0]
        server.close()
        return client, accepted
    client.connect((target, 91))
    client.send(b"first")
    _, peer = server.recvfrom(100)
    server.connect(peer)
    return client, server


def heard(ends: list[socket.socket]) -> list[socket.socket]:
    """Which of them have something to read; what arrives has arrived by the time of the call."""
    return select.select(ends, [], [], 0)[0]


@inside
def test_running_connections_end_with_the_entry() -> None:
    made = place()
    gateway("10.0.0.64/30", "10.0.0.200/32")
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    pairs = [connection(target, kind) for kind in kinds for target in (P1[1], P2[1])]
    for client, server in pairs:
        client.settimeout(ANSWER_S)
        client.send(b"?")
        server.settimeout(ANSWER_S)
        assert server.recv(10)
        server.send(b"!")
        assert client.recv(10) == b"!"
    for left in (("10.0.0.200/32",), ()):  # narrowed, then gone
        gateway(*left)
        for client, server in pairs:
            client.setblocking(False)
            server.setblocking(False)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.send(b"more")
        # Sent after them through the same processor, so nothing of before is still under way.
        made.ask("udp", [Question("q1", P1[1]), Question("q1", P2[1])])
        assert not heard([end for pair in pairs for end in pair]), "neither way"
    gateway(f"{LISTED}/32")
    deadline = time.monotonic() + ANSWER_S
    stream = pairs[0][1]
    while not heard([stream]):  # TCP sends again by itself
        assert time.monotonic() < deadline
        select.select([stream], [], [], 0.2)
    with contextlib.suppress(ConnectionResetError):
        assert stream.recv(10)
