"""A history that uses every command and writes every type of event."""

from __future__ import annotations

from base64 import b64encode
from datetime import timedelta
from typing import Any

from controlplane.cluster.decide import (
    AdvanceDrains,
    AdvanceEncryption,
    AssignHolders,
    DecisionContext,
    MarkLiveness,
    MarkNat,
    MarkPaths,
    decide,
)
from controlplane.cluster.decision import NatFinding
from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import check
from controlplane.cluster.mesh.verdict import Finding
from controlplane.cluster.state import ClusterState
from controlplane.controller.answers import ask
from events.protocol.commands import (
    AddBackend,
    AddEntry,
    AdoptedNode,
    AdoptNodes,
    AppendCidr,
    BeginAdoption,
    BindNodes,
    ChangeKey,
    ChangeUnderlay,
    DeclareNetwork,
    DefineCluster,
    DeleteCluster,
    EndAdoption,
    FenceNode,
    ImportNodes,
    LeaveNode,
    MarkGateway,
    Override,
    ReleaseClb,
    RemoveBackend,
    RemoveEntry,
    RemoveNode,
    ReportHealth,
    ReserveClb,
    SetEncryption,
    SharedUse,
    UseToken,
    WithdrawNetwork,
)
from events.protocol.queries import ListNodes, ListRanges, ShowCluster
from events.types import Event, Network
from tests.controlplane.world import START, joining


def commands() -> list[Any]:
    """Every command and tick, with refusals and overrides among them."""
    silent, watched = START - timedelta(hours=1), START - timedelta(seconds=31)
    return [
        joining(1),
        DefineCluster(
            container_cidr="10.0.0.0/25",
            pods_per_node=32,
            services=32,
            quarantine_s=0.5,
            remove_after_s=30,
            networks=(Network(cidr="10.0.0.0/8", kind="vpc"), Network(cidr="198.18.0.0/15", kind="route")),
            overrides=(Override(code="cidr_conflict_with_vpc", reason="agreed"),),
        ),
        *(joining(number) for number in range(4)),
        joining(2, uid="twin"),
        joining(3, underlay="192.0.2.2"),
        AdvanceDrains(applied={"uid-0": 100, "uid-1": 7, "twin": 7}),
        AppendCidr(cidr="10.0.0.0/26"),
        AppendCidr(cidr="10.0.1.0/25"),
        AppendCidr(cidr="172.16.0.0/25"),
        joining(2, uid="twin"),
        ImportNodes(nodes=tuple(joining(number, kind="external", site="sz") for number in range(10, 13))),
        ChangeUnderlay(node="n11", uid="uid-11", underlay="203.0.113.7", announced="203.0.113.8"),
        LeaveNode(node="n10", uid="uid-10"),
        RemoveNode(node="n12", reason="ticket 4711"),
        FenceNode(node="n0"),
        ReserveClb(reservation="main", subnet="198.51.100.0/28", exclude=("198.51.100.3",)),
        ReserveClb(reservation="small", subnet="198.51.100.0/31"),
        ReleaseClb(reservation="main"),
        ReserveClb(reservation="main", subnet="198.51.100.0/28"),
        BindNodes(nodes=(("n1", "uid-1", "node-1"), ("n2", "gone", "node-2"), ("n9", "x", "y"))),
        BindNodes(nodes=(("n1", "uid-1", ""),)),
        DeclareNetwork(network=Network(cidr="192.168.0.0/16", kind="idc", name="sz")),
        WithdrawNetwork(cidr="198.18.0.0/15"),
        MarkLiveness(last_seen={"uid-1": silent}, watching_since=watched),
        MarkLiveness(last_seen={"uid-1": START}, watching_since=watched),
        MarkPaths(found=(DARK, Finding(scope="pair", a="n1", b="n11", since=1.0)), at_s=9.0),
        MarkPaths(found=(DARK,), over=frozenset({("pair", "n1", "n11")}), at_s=10.0),
        ReserveClb(reservation="gw", subnet="198.51.100.32/28", provider="gateway"),
        MarkGateway(node="n11"),
        MarkGateway(node="n1"),
        MarkGateway(node="n2"),
        AddBackend(**BACKEND, port=443, affinity="source"),
        AddBackend(**BACKEND, port=443, check="none"),
        AddBackend(**BACKEND, port=53, protocol="udp"),
        AddEntry(entry="api", sources=("203.0.113.0/28", "10.0.0.0/25")),
        AddEntry(entry="api", sources=("203.0.113.0/28",)),
        AddEntry(entry="probe", sources=("203.0.113.64/32",)),
        RemoveEntry(entry="probe"),
        ReleaseClb(reservation="gw"),
        AssignHolders(last_seen=HEARD, watching_since=START, able=frozenset(HEARD)),
        *(
            ReportHealth(
                **BACKEND,
                port=443,
                backend_port=443,
                protocol="tcp",
                healthy=healthy,
                node="n1",
                uid="uid-1",
                epoch=epoch,
            )
            for healthy in (False, True)
            for epoch in range(25, 60)
        ),
        MarkGateway(node="n1", on=False),
        RemoveBackend(**BACKEND, port=443),
        MarkLiveness(last_seen={"uid-1": silent}, watching_since=START),
        MarkLiveness(last_seen={"uid-1": silent}, watching_since=START),
        UseToken(token="U" * 56, node="n7", public_key="U" * 56, expires=START + timedelta(days=1)),
        UseToken(token="U" * 56, node="n7", public_key="U" * 56, expires=silent),
        *(
            UseToken(
                token="U" + "S" * 55,
                node=node,
                public_key="U" + "K" * 54 + node[-1],
                expires=START + timedelta(days=1),
                shared=SharedUse(uses=2, until=START + timedelta(hours=1), kind="external", site="sz"),
            )
            for node in ("n2", "s1", "s1", "s2", "s3")
        ),
        AppendCidr(cidr="172.16.4.0/26"),
        BeginAdoption(source="flannel", plan="ab" * 32),
        AdoptNodes(nodes=(OLD,)),
        EndAdoption(reason="all are here"),
        AdoptNodes(nodes=(OLD,)),
        SetEncryption(scope="all"),
        ChangeKey(node="old", uid="uid-old", key=key("old"), port=51820),
        ChangeKey(node="old", uid="uid-old", key="short", port=51820),
        SetEncryption(scope="sites"),
        *(AdvanceEncryption(applied={"uid-old": sequence}) for sequence in range(76, 82)),
        MarkNat(found=(NatFinding("uid-old", True, "203.0.113.9", ("n1",)), NatFinding("nobody", True))),
        MarkNat(found=(NatFinding("uid-old", True),)),
        MarkNat(found=(NatFinding("uid-old", False),)),
        RemoveNode(node="old"),
        DeleteCluster(),
        *(RemoveNode(node=name) for name in ("n1", "n11", "n2")),
        AdvanceDrains(applied={}),
        AdvanceDrains(applied={}),
        DeleteCluster(reason="over"),
        joining(9),
    ]


def key(seed: str) -> str:
    """A public key that nobody has the private one of."""
    return b64encode(seed.encode().ljust(32, b"k")).decode()


OLD = AdoptedNode(
    node="old",
    uid="uid-old",
    kind="cloud",
    underlay="192.0.2.99",
    range="172.16.4.32/27",
    vtep_mac="8a:00:00:00:00:01",
)
DARK = Finding(scope="node", a="n1", fault="direction", broken=("n1", ""), since=2.0, evidence=("3 paths",))
BACKEND: dict[str, Any] = {"reservation": "gw", "purpose": "apiserver", "address": "192.0.2.77"}
HEARD = {"uid-1": START + timedelta(seconds=60), "twin": START + timedelta(seconds=60)}
SURROUNDINGS = DecisionContext(clusters={"stage": ("10.0.1.0/24",)})


def play() -> tuple[ClusterState, list[Event]]:
    """All commands on one state, with queries in between."""
    state, log = ClusterState("prod"), []
    for number, command in enumerate(commands()):
        decision = decide(state, command, START + timedelta(seconds=number), SURROUNDINGS)
        for event in decision.events:
            evolve(state, state.sequence + 1, event)
            log.append(event)
        assert check(state) == []
        for query in (ShowCluster(), ListNodes(), ListRanges()):
            ask(state, query)
    return state, log
