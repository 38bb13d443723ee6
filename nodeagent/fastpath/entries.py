"""What the map of peers should hold, by the way that packets take to each of them now.

It reads what others keep: the view, the ways that lead elsewhere than into the tunnel, the second device's
rows. Packets of a peer that is left out take the stack.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.dataplane.underlay import WIREGUARD_MORE
from nodeagent.fastpath import layout
from nodeagent.fastpath.layout import Side
from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.netlink.links import MTU_MINIMUM
from nodeagent.netlink.rows import address_bytes, mac_bytes
from nodeagent.ways.table import Exit


class Entries:
    """``neighbour``: the MAC of a peer that an exit reaches on this node's link; empty where it leads
    elsewhere."""

    def __init__(self, view: View, tunnel: TunnelDevice, found: OwnFindings) -> None:
        self._view, self._tunnel, self._found = view, tunnel, found
        self.neighbour: Callable[[Peer, Exit], bytes] = lambda _peer, _exit: b""

    def wanted(self) -> dict[bytes, bytes]:
        """All of them, up to what the map takes."""
        return dict(islice(self._made(self._view.peers), layout.PEERS_LIMIT))

    def of(self, peers: Iterable[Peer]) -> dict[bytes, bytes]:
        """Those of some peers, as far as the log still has these."""
        return dict(self._made(peer for peer in peers if self._view.peers.get(peer.cidr) == peer))

    def known(self) -> tuple[Mapping[Peer, int], int]:
        """What of the ways changes without a word to the fast path: narrow ones, and those into WireGuard."""
        return dict(self._found.mtus), self._found.version

    def with_relayed(self, peers: Iterable[Peer]) -> set[Peer]:
        """These, and those whose entries say where one of these is, which relays to them. O(those)."""
        those = set(peers)
        return those | self._found.relayed_by(those)

    def _made(self, peers: Iterable[Peer]) -> Iterator[tuple[bytes, bytes]]:
        spec, underlay = self._tunnel.spec, self._tunnel.underlay
        if spec is None or underlay is None:
            return
        widest, port = min(spec.mtu, underlay.mtu - layout.OVERHEAD), spec.port
        mtus, exits = self._found.mtus, self._found.exits
        special = mtus.keys() | exits.keys()
        plain: list[Peer] = []
        for peer in peers:
            if peer.sealed:
                sealed = self._sealed(peer, widest)
                if sealed is not None:
                    yield sealed
                continue
            if ":" in peer.underlay:
                continue
            if not special or peer not in special:  # to hash a peer takes as long as to make its entry
                plain.append(peer)
                continue
            mtu = min(widest, mtus.get(peer, widest))
            way = exits.get(peer)
            side = self._side(peer, way, port) if way is not None else None
            if way is None or side is not None:
                yield layout.peer_entry(peer, mtu, port, side)
        yield from layout.plain_entries(plain, widest, port).items()

    def _sealed(self, peer: Peer, widest: int) -> tuple[bytes, bytes] | None:
        """Of a peer to which nothing goes in the clear; None while there is no way into WireGuard."""
        way = self._found.encrypted.get(peer)
        if way is None or not way.device:
            return None
        mtu = self._found.mtus.get(peer, 0)
        mtu = min(widest, max(MTU_MINIMUM, mtu - WIREGUARD_MORE)) if mtu else widest
        side = Side(layout.SEALED, way.device.to_bytes(4, sys.byteorder), 0, bytes(6))
        return layout.peer_entry(peer, mtu, 0, side)

    def _side(self, peer: Peer, way: Exit, port: int) -> Side | None:
        mac = self.neighbour(peer, way)
        if mac:
            return Side(layout.DIRECT, address_bytes(peer.underlay), port, mac)
        second = self._tunnel.second
        if way.device not in {0, second.ifindex}:
            return None
        hop = peer if way.gateway == peer.packed()[0] else self._holder(way.gateway)
        if hop is None or ":" in hop.underlay or (hop is peer and not way.device):
            return None
        if not way.device:
            return Side(0, address_bytes(hop.underlay), port, mac_bytes(hop.vtep_mac))
        place = second.rows.fdb.get(mac_bytes(hop.vtep_mac), b"")
        if len(place) not in {4, 6}:
            return None
        return Side(layout.MAPPED, place[:4], int.from_bytes(place[4:], "big") or port, mac_bytes(hop.vtep_mac))

    def _holder(self, vtep: bytes) -> Peer | None:
        """The peer with that VTEP address: all ranges of a cluster are of one size."""
        own = self._view.own
        length = own.cidr.partition("/")[2] if own is not None else ""
        return self._view.peers.get(f"{socket.inet_ntoa(vtep)}/{length}")
