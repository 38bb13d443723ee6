"""Peers → the rows that this node must have. Pure, and incremental: one peer costs the same at any size.

What belongs together changes together: :meth:`Desired.apply` takes one change of the peer table and
returns the ordered operations for exactly that change.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network

from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.view import View
from nodeagent.netlink.messages import Action, Operation, Operations, Run
from nodeagent.netlink.rows import (
    BLACKHOLE,
    STRAY,
    Kind,
    Rows,
    Table,
    preferred_key,
    route_key,
    route_value,
    split_cidr,
)

_PUT, _DROP = Action
_NEIGHBOUR, _FDB, _ROUTE = Kind  # a member of an enumeration is looked up slowly
_new = tuple.__new__  # a named tuple's own constructor is a Python function


class Desired:
    """The desired rows of one node, kept up to date.

    Two peers can share a VTEP MAC for a moment (a node that left and joined again under the same
    uid holds a new range while the removal of the old one is still under way); the FDB row then
    belongs to the newest epoch and outlives the older one. ``_shared`` holds, per such MAC, the
    destination of every claimant by its epoch.

    What was measured on the way to a peer (:meth:`narrow`) is part of its route for as long as that
    peer, at that address, has the range. So is another way than the tunnel (:meth:`prefer`): one more route
    beside the peer's own three rows, which stay.
    """

    def __init__(self) -> None:
        self.rows = Rows.empty()
        self.preferred: Callable[[Peer], bytes | None] = lambda _: None
        """The value of the route that a peer is to have beside its own rows, as they are made."""
        self._claims: dict[bytes, int] = {}  # MAC → epoch of the peer whose FDB row stands
        self._shared: dict[bytes, dict[int, bytes]] = {}

    def own_range(self, cidr: str) -> None:
        """Swallow what is addressed to an unused pod address of the own range instead of sending it on."""
        network = IPv4Network(cidr)
        self.rows.routes[route_key(network.network_address.packed, network.prefixlen)] = BLACKHOLE

    def narrow(self, peer: Peer, mtu: int) -> list[Operation]:
        """The way to a peer passes inner packets of ``mtu`` bytes at most (0: what the device passes)."""
        first, _, _, route = peer.packed()
        value, there = route_value(first, mtu), self.rows.routes.get(route)
        if peer.sealed:
            return []
        if there is None or there == value:
            return []
        self.rows.routes[route] = value
        return [Operation(_PUT, _ROUTE, route, value)]

    def prefer(self, peer: Peer, value: bytes | None) -> list[Operation]:
        """Lead packets to a peer by another route than the tunnel's; None: by the tunnel's.

        ``value`` is a route's, as :mod:`nodeagent.netlink.rows` defines it. A peer that has no rows gets none.
        """
        _, _, _, route = peer.packed()
        key, routes = preferred_key(route[:4], route[4]), self.rows.routes
        there = routes.get(key)
        if there == value or route not in routes:
            return []
        if value is None:
            del routes[key]
            return [Operation(_DROP, _ROUTE, key, there or b"")]
        routes[key] = value
        return [Operation(_PUT, _ROUTE, key, value)]

    def apply(self, change: PeerChange) -> list[Operation]:
        """Follow one change of the peer table; return its writes, then its removals, in safe order."""
        if change.before is None and change.after is not None:
            operations = self._newcomer(change.after)
            if operations:
                return operations
        before = change.before.rows() if change.before else Rows.empty()
        after = change.after.rows() if change.after else Rows.empty()
        touched = Rows(
            {**before.neighbours, **after.neighbours},
            {**before.fdb, **after.fdb},
            {**_with_preferred(before.routes), **_with_preferred(after.routes)},
        )
        old = _pick(self.rows, touched)
        if change.before:
            self._leave(change.before, before)
        if change.after:
            self._enter(change.after, after)
            led = self.preferred(change.after)
            if led is not None and after.routes.keys() <= self.rows.routes.keys():
                self.rows.routes[preferred_key(*split_cidr(change.after.cidr))] = led
        new = _pick(self.rows, touched)
        return difference(new, old)

    def _newcomer(self, peer: Peer) -> list[Operation]:
        """The short way for a peer none of whose rows is there yet, the common case of a join; else nothing."""
        address, mac, destination, route = peer.packed()
        neighbours, fdb, routes = self.rows
        if mac in self._claims or route in routes or address in neighbours or peer.sealed:
            return []
        neighbours[address], fdb[mac], routes[route] = mac, destination, address
        self._claims[mac] = peer.epoch
        return [
            _new(Operation, (_PUT, _NEIGHBOUR, address, mac)),
            _new(Operation, (_PUT, _FDB, mac, destination)),
            _new(Operation, (_PUT, _ROUTE, route, address)),
        ]

    def _enter(self, peer: Peer, rows: Rows) -> None:
        self.rows.neighbours.update(rows.neighbours)
        self.rows.routes.update(rows.routes)
        for mac, destination in rows.fdb.items():
            holder = self._claims.get(mac)
            if holder is not None and holder != peer.epoch:
                claims = self._shared.setdefault(mac, {holder: self.rows.fdb[mac]})
                claims[peer.epoch] = destination
                if holder > peer.epoch:
                    continue
            self._claims[mac] = peer.epoch
            self.rows.fdb[mac] = destination

    def _leave(self, peer: Peer, rows: Rows) -> None:
        for key in rows.neighbours:
            self.rows.neighbours.pop(key, None)
        for key in _with_preferred(rows.routes):
            self.rows.routes.pop(key, None)
        for mac in rows.fdb:
            claims = self._shared.get(mac)
            if claims is not None:
                claims.pop(peer.epoch, None)
                if len(claims) == 1:
                    del self._shared[mac]
                newest = max(claims)
                self._claims[mac], self.rows.fdb[mac] = newest, claims[newest]
            elif self._claims.get(mac) == peer.epoch:
                del self._claims[mac], self.rows.fdb[mac]


def _with_preferred(routes: Table) -> Table:
    """The keys of those routes that may be preferred to these, and of these."""
    return {**{preferred_key(key[:4], key[4]): b"" for key in routes}, **routes}


def _pick(rows: Rows, keys: Rows) -> Rows:
    """The rows whose keys are in ``keys``."""
    return Rows(
        *({key: table[key] for key in wanted if key in table} for table, wanted in zip(rows, keys, strict=True))
    )


def difference(desired: Rows, kernel: Rows) -> list[Operation]:
    """:func:`changes`, one by one."""
    return list(changes(desired, kernel))


def changes(desired: Rows, kernel: Rows) -> Operations:
    """Desired − kernel, as operations in an order that never leads a packet astray.

    Writes: new neighbour → FDB → changed neighbour → route (a route without its neighbour would
    make the kernel ask the tunnel for it; a neighbour that changes its MAC first needs the FDB row
    behind it). Removals behind all writes, in reverse: route → FDB → neighbour.
    """
    if kernel == desired:
        return Operations(())
    wanted, known = desired.neighbours, kernel.neighbours
    fresh: Table = wanted
    changed: Table = {}
    if known:
        writes = _differing(wanted, known)
        fresh = {key: value for key, value in writes.items() if key not in known}
        changed = {key: value for key, value in writes.items() if key in known}
    strange = {key: value for key, value in _superfluous(wanted, known).items() if value != STRAY}
    routes = _differing(desired.routes, kernel.routes)
    # A peer is sealed when its route into WireGuard is there, not before.
    last = {key: value for key, value in routes.items() if value == BLACKHOLE}
    first = {key: value for key, value in routes.items() if value != BLACKHOLE} if last else routes
    return Operations((
        _run(_PUT, _NEIGHBOUR, fresh),
        _run(_PUT, _FDB, _differing(desired.fdb, kernel.fdb)),
        _run(_PUT, _NEIGHBOUR, changed),
        _run(_PUT, _ROUTE, first),
        _run(_PUT, _ROUTE, last),
        _run(_DROP, _ROUTE, _superfluous(desired.routes, kernel.routes)),
        _run(_DROP, _FDB, _superfluous(desired.fdb, kernel.fdb)),
        _run(_DROP, _NEIGHBOUR, strange),
    ))  # fmt: skip


def _run(action: Action, kind: Kind, table: Table) -> Run:
    return Run(action, kind, tuple(table), tuple(table.values()))


def _differing(desired: Table, kernel: Table) -> Table:
    if not kernel:
        return desired
    if desired == kernel:
        return {}
    get = kernel.get
    return {key: value for key, value in desired.items() if get(key) != value}


def _superfluous(desired: Table, kernel: Table) -> Table:
    if kernel.keys() <= desired.keys():  # the usual case, and three times as fast as an empty difference
        return {}
    return {key: kernel[key] for key in kernel.keys() - desired.keys()}


def desired_of(own: Peer, view: View) -> Desired:
    """The desired rows of a node from scratch. The attestation's link row is not among them."""
    desired = Desired()
    desired.own_range(own.cidr)
    for peer in view.peers:
        desired.apply(PeerChange(None, peer))
    return desired
