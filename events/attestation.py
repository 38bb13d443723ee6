"""A digest of the rows that a node must have in its kernel, cheap enough to expect it of every node.

The digest of a set of rows is the sum of the rows' hashes modulo 2²⁵⁶: the order plays no part,
one row is added or taken away at a fixed price, and the rows of one peer have the same hash on
every node. So a controller keeps *one* sum for the whole cluster and expects of each node that sum
less the node's own rows plus its link: nothing grows with the square of the nodes.

A sum tells accidents (a stale, missing or changed row) apart with certainty for all practical
purposes; it is no protection against a node that lies about its own kernel.
"""

from __future__ import annotations

from hashlib import blake2b
from ipaddress import IPv4Network, ip_address

MODULUS = 1 << 256


def row_hash(kind: str, key: bytes, value: bytes) -> int:
    """The hash of one row. ``kind`` is ``neighbour``, ``fdb``, ``route`` or ``link``."""
    text = b"%b\n%d\n%b%b" % (kind.encode(), len(key), key, value)
    return int.from_bytes(blake2b(text, digest_size=32).digest(), "big")


def neighbour_hash(address: bytes, mac: bytes) -> int:
    """Neighbour: 4 bytes of address → 6 bytes of MAC."""
    return row_hash("neighbour", address, mac)


def fdb_hash(mac: bytes, underlay: bytes) -> int:
    """FDB row: 6 bytes of MAC → 4 or 16 bytes of underlay address."""
    return row_hash("fdb", mac, underlay)


def route_hash(network: bytes, prefix_length: int, metric: int, gateway: bytes) -> int:
    """Route: network, prefix length and metric → next hop; an empty next hop is a blackhole."""
    return row_hash("route", network + bytes([prefix_length]) + metric.to_bytes(4, "big"), gateway)


def link_hash(vni: int, port: int, vtep_mac: str, address: str) -> int:
    """The vxlan device: VNI, UDP port, MAC, its address (the range's first), and that it is up."""
    text = f"{vni} {port} {vtep_mac.lower()} {address} up"
    return row_hash("link", b"", text.encode())


def peer_sum(cidr: str, vtep_mac: str, underlay: str) -> int:
    """The three rows by which any other node reaches a peer. The metric is the range's address as a number."""
    network = IPv4Network(cidr)
    first = network.network_address.packed
    mac = bytes.fromhex(vtep_mac.replace(":", ""))
    return (
        neighbour_hash(first, mac)
        + fdb_hash(mac, ip_address(underlay).packed)
        + route_hash(first, network.prefixlen, int(network.network_address), first)
    ) % MODULUS


def own_sum(cidr: str, vtep_mac: str, vni: int, port: int) -> int:
    """What a node has for itself: its link and the blackhole of its own range."""
    network = IPv4Network(cidr)
    first = network.network_address
    blackhole = route_hash(first.packed, network.prefixlen, int(first), b"")
    return (link_hash(vni, port, vtep_mac, str(first)) + blackhole) % MODULUS


def text(total: int) -> str:
    """A sum as it is published: 64 hexadecimal digits."""
    return f"{total % MODULUS:064x}"


class ClusterSum:
    """The sum over all peers of a cluster, kept by whoever folds the log.

    Hashing waits until somebody asks: a join costs two dictionary writes.
    """

    def __init__(self) -> None:
        self._total = 0
        self._peers: dict[str, int] = {}  # range → the sum of its owner's three rows, as in the total
        self._pending: dict[
            str, tuple[str, str] | None
        ] = {}  # range → MAC and underlay to be counted; None: none

    def put(self, cidr: str, vtep_mac: str, underlay: str) -> None:
        """A range has (another) owner, or its owner another address."""
        self._pending[cidr] = (vtep_mac, underlay)

    def drop(self, cidr: str) -> None:
        """A range has no owner any more."""
        self._pending[cidr] = None

    def total(self) -> int:
        """The sum over all peers (modulo 2²⁵⁶)."""
        self._settle()
        return self._total

    def expected(self, cidr: str, vtep_mac: str, vni: int, port: int) -> str:
        """What the owner of ``cidr`` must publish."""
        self._settle()
        return text(self._total - self._peers.get(cidr, 0) + own_sum(cidr, vtep_mac, vni, port))

    def _settle(self) -> None:
        for cidr, owner in self._pending.items():
            self._total -= self._peers.pop(cidr, 0)
            if owner is not None:
                value = self._peers[cidr] = peer_sum(cidr, *owner)
                self._total += value
        self._pending.clear()
        self._total %= MODULUS
