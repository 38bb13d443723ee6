"""Who asks which kind of Service, and whether an answer is due: for rules of whatever made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.nodeagent.kube_proxy import MODES, HostPort, Service
from tests.nodeagent.service_network import PODS, Network, Question

P1, P2 = PODS["p1"], PODS["p2"]
NODES = {1: "10.0.0.1", 2: "10.0.0.2"}
CLUSTER = Service("cluster", "172.16.255.10", 30080, "203.0.113.10", (P1,))
LOCAL = Service("local", "172.16.255.11", 30081, "203.0.113.11", (P1,), local=True)
STICKY = Service("sticky", "172.16.255.12", 30082, "203.0.113.12", (P1, P2), affinity=True)
SERVICES = (CLUSTER, LOCAL, STICKY)
HOST_PORT = HostPort(8080, P1[1])

SOURCES: dict[str, tuple[str, int, str]] = {
    "the pod itself": ("p1", 1, ""),
    "pod, same node": ("q1", 1, ""),
    "pod, other node": ("q2", 2, ""),
    "node": ("n1", 1, ""),
    "other node": ("n2", 2, ""),
    "other node, bound to its InternalIP": ("n2", 2, NODES[2]),
    "outside, through the node": ("f66", 1, ""),
    "outside, through the other node": ("f67", 2, ""),
}
"""Name → namespace, number of the node that carries it, source address."""


def questions(mode: str) -> Iterator[tuple[str, Question, bool]]:
    """What, the question, and whether it is to be answered; the backend is on node 1."""
    for name, (place, number, source) in SOURCES.items():
        outside = place.startswith("f")

        def ask(
            target: str,
            port: int = 80,
            place: str = place,
            source: str = source,
        ) -> Question:
            return Question(place, target, port, source)

        yield f"{name} → pod", ask(P1[1]), not outside
        for service in (CLUSTER, LOCAL):
            yield f"{name} → ClusterIP {service.name}", ask(service.cluster_ip), not outside
            # kube-proxy lets its own pods and its own node go past `Local`, if it can tell pods from others
            own = not outside and (place.startswith("n") or mode != "none")
            here = not service.local or number == 1 or own
            yield f"{name} → LoadBalancer {service.name}", ask(service.balancer), here
            for at, address in NODES.items():
                there = not service.local or at == 1 or (own and at == number)
                yield f"{name} → NodePort {service.name} at {at}", ask(address, service.node_port), there
        yield f"{name} → hostPort", ask(NODES[1], HOST_PORT.port), True
        yield f"{name} → hostPort where no pod has it", ask(NODES[2], HOST_PORT.port), False


def run(place: Network, proxy: Callable[[str], None]) -> None:
    """The whole matrix; ``proxy`` sets up both nodes' Service rules in a mode."""
    for mode in MODES:
        proxy(mode)
        for fast in (False, True):
            place.fast(fast)
            before = place.used()
            for kind in ("udp", "tcp"):
                matrix(place, mode, kind)
                affinity(place, kind)
            assert bool(place.used() - before) == fast


def matrix(place: Network, mode: str, kind: str) -> None:
    """Every question of a mode."""
    asked = list(questions(mode))
    passing = {question: name for name, question, passes in asked if passes}
    found = place.ask(kind, passing, [question for _, question, passes in asked if not passes])
    for question, name in passing.items():
        answer = found[question]
        assert answer.pod == "p1", f"{mode} {kind} {name}: {answer}"
        address = PODS.get(question.place, (0, ""))[1]
        direct = question.target == P1[1] or (question.target == CLUSTER.cluster_ip and question.place != "p1")
        if direct and address and mode != "none":  # no address is translated between pods
            assert answer.seen == address, f"{mode} {kind} {name}: {answer}"
        if question.place == "f66" and LOCAL.balancer == question.target:
            assert answer.seen == "10.0.0.66", f"{mode} {kind} {name}: {answer}"


def affinity(place: Network, kind: str) -> None:
    """Whoever asks again gets the same pod."""
    targets = [
        (STICKY.cluster_ip, 80),
        (NODES[1], STICKY.node_port),
        (NODES[2], STICKY.node_port),
        (STICKY.balancer, 80),
    ]
    asked = [
        Question(source, target, port)
        for source in ("q1", "q2", "n1", "n2", "f66", "f67")
        for target, port in targets
        if not (source.startswith("f") and target == STICKY.cluster_ip)
    ]
    first = place.ask(kind, asked)
    for _ in range(3):
        assert {q: a.pod for q, a in place.ask(kind, asked).items()} == {q: a.pod for q, a in first.items()}
    assert {answer.pod for answer in first.values()} <= {"p1", "p2"}
