"""What this node found out itself of the ways to its peers, and not by the log: narrow ways, and other ways.

Both are parts of rows, so they are put into every set of rows that is made anew. No input or output; the
reconciler's lock lets one call in at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from events.status import WayKind
from nodeagent.dataplane.desired import Desired
from nodeagent.dataplane.underlay import WIREGUARD_MORE
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.view import View
from nodeagent.netlink.links import MTU_MINIMUM
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import (
    Kind,
    is_preferred,
    preferred_key,
    route_value,
    side_route_value,
    split_cidr,
    split_side_route,
)
from nodeagent.ways.table import Exit

PRECEDENCE: tuple[WayKind, ...] = ("tunnel", "relayed", "nat", "direct")


class OwnFindings:
    """``mtus``: the inner MTU of each peer whose way is narrower than the device, in bytes; ``exits``: peers
    that are reached by another way than the tunnel; ``encrypted``: peers that WireGuard knows, which alone
    counts once they are sealed; ``device_mtu``: of the tunnel, 0 while there is none.
    """

    def __init__(self) -> None:
        self.mtus: dict[Peer, int] = {}
        self.exits: dict[Peer, Exit] = {}
        self._by_kind: dict[WayKind, dict[Peer, Exit]] = {}
        self._relayed_by: dict[bytes, set[Peer]] | None = {}  # VTEP address → whom; None: to be made anew
        self.encrypted: dict[Peer, Exit] = {}
        self.version = 0
        """Grows with every change of these."""
        self.device_mtu = 0

    def narrow(self, mtus: Mapping[Peer, int], view: View | None, desired: Desired | None) -> list[Operation]:
        """The whole of what is known of narrow ways; what to write for it."""
        before, self.mtus = self.mtus, dict(mtus)
        changed = _present({**before, **mtus}, view)
        if desired is None:
            return []
        return [
            operation
            for peer in changed
            for operation in (
                *desired.narrow(peer, mtus.get(peer, 0)),
                *(desired.prefer(peer, self.preferred(peer)) if self._led(peer) else ()),
            )
        ]

    def prefer(
        self, exits: Mapping[Peer, Exit], view: View | None, desired: Desired | None, *, by: WayKind
    ) -> list[Operation]:
        """The whole of what leads to peers by ways of one kind; what to write for it.

        Of several kinds the later one of :data:`PRECEDENCE` leads.
        """
        self._by_kind[by] = dict(exits)
        self._relayed_by = None
        before = self.exits
        self._lead()
        changed = [peer for peer in {**before, **self.exits} if before.get(peer) != self.exits.get(peer)]
        if desired is None:
            return []
        return [
            operation
            for peer in _present(changed, view)
            for operation in desired.prefer(peer, self.preferred(peer))
        ]

    def encrypt(
        self, ways: Mapping[tuple[str, int], Exit], view: View | None, desired: Desired | None
    ) -> list[Operation]:
        """The whole of what leads into WireGuard, by range and epoch; what to write for it.

        Peers may have come to another stage since their ways were found: what tells them apart stays.
        """
        exits = {
            peer: way
            for peer in (view.peers if view is not None else ())
            if peer.encrypts and (way := ways.get((peer.cidr, peer.epoch))) is not None
        }
        before, self.encrypted = self.encrypted, exits
        changed = [peer for peer in {**before, **exits} if before.get(peer) != exits.get(peer)]
        self.version += bool(changed)
        if desired is None:
            return []
        return [
            operation
            for peer in _present(changed, view)
            if peer.sealed
            for operation in desired.prefer(peer, self.preferred(peer))
        ]

    def follow(self, changes: Sequence[PeerChange]) -> None:
        """A peer whose key or stage changed is still at the same place: what is known of the way holds, and the
        route into WireGuard stays while its peer there is changed.

        So the step from plain to encrypted has its route at hand.
        """
        for before, after in changes:
            if before is None or after is None or before.epoch != after.epoch:
                continue
            if before.underlay == after.underlay and before in self.mtus:
                self.mtus[after] = self.mtus.pop(before)
            for ways in self._by_kind.values():
                if before.underlay == after.underlay and before in ways:
                    ways[after] = self.exits[after] = ways.pop(before)
                    self._relayed_by = None
            if after.key and after.port and before in self.encrypted:
                self.encrypted[after] = self.encrypted.pop(before)

    def _lead(self) -> None:
        self.exits = {}
        for kind in PRECEDENCE:
            self.exits.update(self._by_kind.get(kind, {}))

    def put_into(self, desired: Desired, view: View) -> None:
        """Rows were made anew, or the device has another MTU."""
        for peer in _present(self.mtus, view):
            desired.narrow(peer, self.mtus[peer])
        for peer in _present({**self.exits, **self.encrypted}, view):
            desired.prefer(peer, self.preferred(peer))

    def adopt(self, routes: Mapping[bytes, bytes], view: View, *, sideways: bool) -> None:
        """At the start: what an earlier life found of the ways stands in the kernel's routes.

        ``sideways``: routes over other devices, to a peer's own address there, may go on. So may those of
        sealed peers into the device itself, which is WireGuard's.
        """
        self.encrypted = {
            peer: way for peer in view.peers if peer.sealed and (way := _side_way(peer, routes, bytes(4)))
        }
        if sideways:
            direct = {peer: way for peer in view.peers if (way := _side_way(peer, routes, peer.packed()[2]))}
            self._by_kind["direct"] = direct
            self._lead()
        narrow = {
            key: int.from_bytes(value[4:], "big")
            for key, value in routes.items()
            if len(value) == 8 and not is_preferred(key)
        }
        if narrow:
            self.mtus = {peer: mtu for peer in view.peers if (mtu := narrow.get(peer.packed()[3]))}

    def give_up(self, desired: Desired, refused: Sequence[Operation]) -> bool:
        """A preferred route that the kernel does not take (its device is down) is none; whether one was."""
        keys = {
            operation.key
            for operation in refused
            if operation.kind is Kind.ROUTE and operation.action is Action.PUT and is_preferred(operation.key)
        }
        for key in keys:
            desired.rows.routes.pop(key, None)
        if keys:
            lost = {peer for peer in self.exits if preferred_key(*split_cidr(peer.cidr)) in keys}
            for ways in (self.exits, *self._by_kind.values()):
                for peer in lost:
                    ways.pop(peer, None)
            self.encrypted = {
                peer: way
                for peer, way in self.encrypted.items()
                if preferred_key(*split_cidr(peer.cidr)) not in keys
            }
            self.version += 1
            self._relayed_by = None
        return bool(keys)

    def relayed_by(self, relays: Iterable[Peer]) -> set[Peer]:
        """The peers to which any of these forwards. O(these); after a change of ways once O(relayed peers)."""
        if self._relayed_by is None:
            self._relayed_by = {}
            for peer, way in self._by_kind.get("relayed", {}).items():
                self._relayed_by.setdefault(way.gateway, set()).add(peer)
        if not self._relayed_by:
            return set()
        return {peer for relay in relays for peer in self._relayed_by.get(relay.packed()[0], ())}

    def _led(self, peer: Peer) -> bool:
        return peer in (self.encrypted if peer.sealed else self.exits)

    def preferred(self, peer: Peer) -> bytes | None:
        """The route that is to lead to the peer instead of the tunnel's; None: that one."""
        way = (self.encrypted if peer.sealed else self.exits).get(peer)
        if way is None or not self.device_mtu:
            return None
        if not way.device:
            return route_value(way.gateway, self.mtus.get(peer, 0))
        mtu = self.mtus.get(peer, 0)
        if peer.sealed and mtu:
            mtu = max(MTU_MINIMUM, mtu - WIREGUARD_MORE)
        return side_route_value(
            way.gateway, min(mtu or self.device_mtu, self.device_mtu), way.device, way.source
        )


def _side_way(peer: Peer, routes: Mapping[bytes, bytes], hop: bytes) -> Exit | None:
    value = routes.get(preferred_key(*split_cidr(peer.cidr)), b"")
    if len(value) != 16 or value[:4] != hop:
        return None
    gateway, _, device, source = split_side_route(value)
    return Exit(gateway, device, source)


def _present(peers: Iterable[Peer], view: View | None) -> list[Peer]:
    """Those that the log still knows as they are here."""
    return [peer for peer in peers if view is not None and view.peers.get(peer.cidr) == peer]
