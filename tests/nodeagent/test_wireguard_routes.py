"""The routes of peers to whom packets are encrypted, as the agent wants them: without a kernel."""

from __future__ import annotations

import msgspec

from events.types import ClusterEncryptionChanged, Event, NodeKeyChanged
from nodeagent.dataplane.desired import Desired
from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.membership.peers import PeerChange
from nodeagent.netlink.messages import Action
from nodeagent.netlink.rows import BLACKHOLE
from nodeagent.ways.table import Exit
from tests.nodeagent.host import peer
from tests.nodeagent.logs import DEFINED, folded, joined


def test_a_sealed_peer_has_a_blackhole_and_its_way_comes_before_it() -> None:
    """From plain to encrypted the route into WireGuard is written first; without one nothing leads out."""
    plain = peer(2)
    own, findings = Desired(), OwnFindings()
    findings.device_mtu = 1440
    own.preferred = findings.preferred
    own.apply(PeerChange(None, plain))
    accepting = msgspec.structs.replace(plain, key="k", port=1, stage="accepting")
    assert own.apply(PeerChange(plain, accepting)) == []
    findings.encrypted = {accepting: Exit(bytes(4), 7, b"\x0a\0\0\1")}
    sealed = msgspec.structs.replace(accepting, stage="sending")
    findings.follow([PeerChange(accepting, sealed)])
    first, second = own.apply(PeerChange(accepting, sealed))
    assert (len(first.value), second.value) == (16, BLACKHOLE)
    assert own.narrow(sealed, 1300) == []
    back = own.apply(PeerChange(sealed, accepting))
    assert [operation.action for operation in back] == [Action.PUT, Action.DROP], "the tunnel's route first"
    alone = Desired()
    alone.apply(PeerChange(None, sealed))
    assert set(alone.rows.routes.values()) == {BLACKHOLE}, "at the start, before WireGuard is there"


def test_ways_that_were_found_for_an_earlier_stage_hold_for_the_next_one() -> None:
    """A peer goes on to the next stage while WireGuard is looked at: its route stays."""
    log: list[Event] = [DEFINED, *joined(0), *joined(1), NodeKeyChanged(node="n1", uid="u1", key="k", port=7)]
    view, own, findings = folded(log), Desired(), OwnFindings()
    findings.device_mtu, own.preferred = 1440, findings.preferred
    for stage in ("accepting", "sending"):
        event = ClusterEncryptionChanged(cluster="c", scope="all", within_sites=stage, between_sites=stage)  # type: ignore[arg-type]
        changes = view.apply(view.sequence + 1, event)
        findings.follow(changes)
        for change in changes:
            own.apply(change)
        if stage == "accepting":
            (peer_then,) = view.peers
            ways = {(peer_then.cidr, peer_then.epoch): Exit(bytes(4), 7, b"\x0a\0\0\1")}
            assert findings.encrypt(ways, view, own) == [], "not sealed yet"
    assert findings.encrypt(ways, view, own) == []
    assert sum(len(value) == 16 for value in own.rows.routes.values()) == 1
    assert [operation.action for operation in findings.encrypt({}, view, own)] == [Action.DROP]
