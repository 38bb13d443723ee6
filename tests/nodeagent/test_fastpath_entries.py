"""What the programs know of each peer, by the way to it: where its packets go, and from where they come."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import cast

import msgspec

from nodeagent.conditions import Conditions
from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.dataplane.underlay import WIREGUARD_MORE
from nodeagent.fastpath import layout
from nodeagent.fastpath.entries import Entries
from nodeagent.fastpath.layout import NodeRecord
from nodeagent.fastpath.predecessors import Predecessors
from nodeagent.fastpath.programs import Programs
from nodeagent.fastpath.reconciler import FastPath
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.view import View
from nodeagent.netlink.rows import Rows, address_bytes, mac_bytes
from nodeagent.ways.table import Exit
from tests.nodeagent import host

LINK, SECOND, WIREGUARD = 2, 7, 9
SEEN = address_bytes("198.51.100.1")


def made(*peers: Peer) -> tuple[Entries, OwnFindings]:
    """Of a node whose peer 2 is seen at 198.51.100.1:30000 of the second device."""
    view, found = View("c", "n1", "u1"), OwnFindings()
    view.own = host.peer(1)
    for peer in peers:
        view.peers.put(peer)
    _, mac, _, _ = host.peer(2).packed()
    second = SimpleNamespace(ifindex=SECOND, rows=Rows({}, {mac: SEEN + (30000).to_bytes(2, "big")}, {}))
    device = SimpleNamespace(
        spec=SimpleNamespace(mtu=host.MTU, port=host.PORT), underlay=SimpleNamespace(mtu=1500), second=second
    )
    return Entries(view, cast("TunnelDevice", device), found), found


def test_each_way_has_its_own_place() -> None:
    one, two, three, four, five = map(host.peer, (9, 2, 3, 4, 5))
    entries, found = made(one, two, three, four, five)
    entries.neighbour = lambda peer, way: bytes(6 * [1]) if way.device == LINK else b""
    found.prefer({two: Exit(two.packed()[0], SECOND, b"")}, None, None, by="nat")
    relayed = {three: Exit(two.packed()[0], SECOND, b""), four: Exit(one.packed()[0], 0, b"")}
    found.prefer(relayed, None, None, by="relayed")
    found.prefer({five: Exit(address_bytes(five.underlay), LINK)}, None, None, by="direct")
    found.mtus[five] = 1300
    own = {peer: layout.peer_entry(peer, host.MTU, host.PORT)[0] for peer in (one, two, three, four, five)}
    mapped = layout.Side(layout.MAPPED, SEEN, 30000, mac_bytes(two.vtep_mac))
    relay = layout.Side(0, address_bytes(one.underlay), host.PORT, mac_bytes(one.vtep_mac))
    near = layout.Side(layout.DIRECT, address_bytes(five.underlay), host.PORT, bytes(6 * [1]))
    wanted = dict(
        layout.peer_entry(peer, mtu, host.PORT, side)
        for peer, mtu, side in (
            (one, host.MTU, None), (two, host.MTU, mapped), (three, host.MTU, mapped), (four, host.MTU, relay),
            (five, 1300, near),
        )
    )  # fmt: skip
    assert entries.wanted() == wanted
    assert entries.of([three, host.peer(8)]) == {own[three]: wanted[own[three]]}, "of members alone"
    assert entries.with_relayed([two, five]) == {two, five, three}
    assert entries.with_relayed([one]) == {one, four}
    found.prefer({}, None, None, by="nat")
    entries, found = made(three)
    found.prefer({three: Exit(two.packed()[0], SECOND, b"")}, None, None, by="relayed")
    assert entries.wanted() == {}, "a relay that is no member leads nowhere"
    found.prefer({three: Exit(three.packed()[0], SECOND, b"")}, None, None, by="relayed")
    assert entries.wanted() == {}, "nor does a place that is not known"


def test_what_is_encrypted_goes_into_its_device_alone() -> None:
    stages = {
        stage: msgspec.structs.replace(host.peer(number), stage=stage, key="k", port=51820)
        for number, stage in ((2, "accepting"), (3, "sending"), (4, "required"))
    }
    entries, found = made(*stages.values())
    plain = dict([layout.peer_entry(stages["accepting"], host.MTU, host.PORT)])
    assert entries.wanted() == plain, "while there is no way into WireGuard"
    before = entries.known()
    found.encrypt(
        {(peer.cidr, peer.epoch): Exit(bytes(4), WIREGUARD) for peer in stages.values()}, entries._view, None
    )
    assert entries.known() != before, "the fast path is told"
    found.mtus[stages["required"]] = 1400
    side = layout.Side(layout.SEALED, WIREGUARD.to_bytes(4, sys.byteorder), 0, bytes(6))
    assert entries.wanted() == plain | dict(
        layout.peer_entry(stages[stage], mtu, 0, side)  # type: ignore[index]
        for stage, mtu in (("sending", host.MTU), ("required", 1400 - WIREGUARD_MORE))
    )


def test_who_is_behind_a_relay_follows_it_and_nobody_else_is_looked_at() -> None:
    """The entry of a relayed peer says where its relay is."""
    relay, far, other = map(host.peer, (9, 3, 4))
    entries, found = made(relay, far, other)
    found.prefer({far: Exit(relay.packed()[0])}, None, None, by="relayed")
    there: dict[bytes, bytes] = {}
    kernel = SimpleNamespace(put_peers=there.update, drop_peers=lambda keys: [there.pop(key) for key in keys])
    path = FastPath(
        Conditions(), entries._tunnel, entries._view, found=found,
        predecessors=cast("Predecessors", None), loaded=cast("Programs", kernel), why_not="",
    )  # fmt: skip
    path._record = NodeRecord(generation=1)
    key_of = {peer: layout.range_key(peer.cidr) for peer in (relay, far, other)}
    path.after([PeerChange(None, peer) for peer in (relay, far, other)])
    assert there == entries.wanted()
    entries._found.exits = cast("dict[Peer, Exit]", _Counted(found.exits))
    moved = msgspec.structs.replace(relay, underlay="10.0.0.99")
    path.before([PeerChange(relay, moved)])
    assert there.keys() == {key_of[other]}, "the packets of both take the stack meanwhile"
    entries._view.peers.put(moved)
    path.after([PeerChange(relay, moved)])
    assert there == entries.wanted()
    assert address_bytes("10.0.0.99") in there[key_of[far]]
    before = len(cast("_Counted", entries._found.exits).asked)
    path.before([PeerChange(other, None)])
    entries._view.peers.drop(other.cidr)
    path.after([PeerChange(other, None)])
    assert len(cast("_Counted", entries._found.exits).asked) == before, "of nobody but who changed"
    assert there.keys() == {key_of[relay], key_of[far]}
    path.before([PeerChange(moved, None)])
    assert there == {}, "a relay that is gone leads nowhere"


class _Counted(dict[Peer, Exit]):
    """Ways, and for whom one was asked; walking through them all is an error."""

    def __init__(self, ways: dict[Peer, Exit]) -> None:
        super().__init__(ways)
        self.asked: list[Peer] = []

    def get(self, peer: Peer, default: object = None) -> Exit | None:  # type: ignore[override]
        self.asked.append(peer)
        return super().get(peer)

    def items(self) -> object:  # type: ignore[override]
        raise AssertionError("all of them")


def test_an_ipv6_underlay_is_named_as_what_turns_it_off() -> None:
    view = View("c", "n1", "u1")
    device = SimpleNamespace(
        underlay=SimpleNamespace(address="fd00::1", present=True),
        spec=SimpleNamespace(),
        ifindex=7,
        second=None,
    )
    path = FastPath(
        Conditions(), cast("TunnelDevice", device), view, found=OwnFindings(),
        predecessors=cast("Predecessors", None), loaded=cast("Programs", None), why_not="",
    )  # fmt: skip
    path._step(cast("Programs", None))
    assert path.line() == "off: the programs do not carry packets over an IPv6 underlay"
