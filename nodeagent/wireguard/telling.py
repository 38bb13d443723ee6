"""What is told of the ways to peers where packets are encrypted: WireGuard's places, not the tunnel's. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.ways.table import Way, WayTable
from nodeagent.wireguard.managed import ManagedDevice
from nodeagent.wireguard.pairs import Pair


def tell(
    table: WayTable,
    view: View,
    now: float,
    *,
    unencrypted: Callable[[Peer], Way | None],
    place: Callable[[Peer], str],
) -> None:
    """Have the table say which ways are encrypted, and where these lead. O(peers).

    ``unencrypted`` is the way as it is without encryption, ``place`` WireGuard's to a peer (:func:`place_of`).
    """
    table.keep(view.peers.get)
    for peer in view.peers:
        before = table.of(peer)
        way = msgspec.structs.replace(before, encrypted=peer.sealed)
        if way.kind == "nat" and (known := unencrypted(peer)) is not None and known.kind == "nat":
            via = known.via.rpartition(":")[0]  # the mapping of another port is another one
            way = known if not peer.sealed else Way("nat", place(peer) or via, encrypted=True)
        if way != before:
            table.set(peer, way, now)


def place_of(view: View, peer: Peer, devices: Mapping[Pair, ManagedDevice], pair: Pair | None) -> str:
    """Where encrypted packets to a peer behind NAT go that leave by that device, ADDRESS:PORT; empty where that
    is what the peer announces, or not known.
    """
    member = view.members.get(peer.node)
    state = devices[pair].state if pair is not None else None
    if pair is None or state is None or member is None or not member.behind_nat:
        return ""
    there = next((state.peers.get(key) for slot, key in peer.keys if slot == pair.peer), None)
    return "{}:{}".format(*there.settings.endpoint) if there and there.settings.endpoint[1] else ""
