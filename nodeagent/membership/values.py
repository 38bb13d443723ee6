"""What a view is made of, as frozen values: members, the overlay's plan, and a whole view at rest."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network

import msgspec

from events.jetstream.snapshots import SnapshotMember
from events.protocol.clb import Traffic
from events.protocol.encryption import NO_ENCRYPTION, Encryption
from events.types import NetworkDeclared, NetworkWithdrawn, NodeJoined


class Member(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A live node of the log, with or without a range yet."""

    node: str
    uid: str
    vtep_mac: str
    announced: str
    underlay: str
    site: str = ""
    key: str = ""
    """Its public key; empty: its agent is of an earlier release."""
    port: int = 0
    """UDP port by which WireGuard reaches it; 0: it has none."""
    behind_nat: bool = False
    """Whether the log has it behind NAT: its own address means something on its own link alone."""
    beside: str = ""
    """The key before ``key`` that is still valid; empty: there is none."""
    slot: int = 0
    """That of ``key``: see :mod:`nodeagent.wireguard.pairs`."""


def member_of(one: NodeJoined | SnapshotMember) -> Member:
    """The member as the event or the snapshot has it."""
    more = (one.key, one.port, one.behind_nat, one.beside, one.slot) if isinstance(one, SnapshotMember) else ()
    return Member(one.node, one.uid, one.vtep_mac, one.announced, one.underlay, one.site, *more)


class OverlayPlan(msgspec.Struct, frozen=True):
    """The overlay's constants and the container network, as the log defines them."""

    vni: int
    port: int
    service_cidr: str
    cidrs: tuple[str, ...]
    range_size: int = 0
    """Addresses of a range; 0 where a cache of a release before 0.3 does not say it."""
    networks: tuple[str, ...] = ()
    """Routed networks that were declared with the cluster; one that overlaps was accepted by somebody."""


class Saved(msgspec.Struct, frozen=True):
    """A view at rest. ``floors`` are the epochs that ended, by range."""

    cluster: str
    node: str
    uid: str
    sequence: int
    chain: str
    plan: OverlayPlan | None
    members: list[Member]
    ranges: list[tuple[str, int, str]]
    floors: dict[str, int]
    fenced: bool
    last_event_at: float = 0.0
    traffic: Traffic = Traffic()
    parked: tuple[int, ...] = ()
    leaving: tuple[Member, ...] = ()
    """Owners that have left and whose ranges have not drained yet: the log was cut inside of their leaving."""
    encryption: Encryption = NO_ENCRYPTION


def with_network(plan: OverlayPlan, event: NetworkDeclared | NetworkWithdrawn) -> OverlayPlan:
    """The plan after a routed network was declared or withdrawn."""
    if isinstance(event, NetworkDeclared):
        return msgspec.structs.replace(plan, networks=(*plan.networks, event.network.cidr))
    rest = tuple(network for network in plan.networks if network != event.cidr)
    return msgspec.structs.replace(plan, networks=rest)


@lru_cache(maxsize=1 << 14)
def first_address(cidr: str) -> str:
    """The first address of a range: its VTEP address."""
    return str(IPv4Network(cidr).network_address)
