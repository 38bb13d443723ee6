"""The canonical text of a state → the state: so that a capsule can carry what stood before it.

The inverse of :func:`controlplane.cluster.digest.canonical`; the digest of what comes out must equal the
hash of what went in, and is compared.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256

import msgspec

from controlplane.cluster.digest import FORMAT, state_digest
from controlplane.cluster.state import Cidr, ClusterState, Fenced, Node, Range, Refusal
from events.errors import VerificationFailed
from events.protocol.clb import Backend, BackendKey, Holder
from events.types import ClbReserved, ClusterDefined, ConflictOverridden, Network, RangeQuarantined

_Traffic = tuple[list[tuple[str, int]], list[tuple[BackendKey, Backend]], list[tuple[str, Holder]]]
"""Gateways, backends and holders; left out of the text where there are none."""


class _Canonical(msgspec.Struct, array_like=True):
    format: str
    name: str
    sequence: int
    deleted: int
    definition: ClusterDefined | None
    cidrs: tuple[Cidr, ...]
    cursor: int
    networks: list[tuple[str, Network]]
    overrides: list[tuple[tuple[str, str, str], ConflictOverridden]]
    nodes: list[tuple[str, Node]]
    ranges: list[tuple[int, Range]]
    draining: list[tuple[int, int]]
    quarantined: list[tuple[int, RangeQuarantined]]
    unreachable: list[tuple[str, datetime | None]]
    fenced: list[tuple[str, Fenced]]
    clb: list[tuple[str, ClbReserved]]
    refusals: list[tuple[str, list[tuple[str, Refusal]]]]
    traffic: _Traffic = ([], [], [])


def decode_state(text: bytes) -> ClusterState:
    """Rebuild the state. Raises VerificationFailed(digest_mismatch) when it is not what the text says."""
    try:
        c = msgspec.json.decode(text, type=_Canonical)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationFailed("digest_mismatch", f"the stored state is unreadable: {error}") from error
    if c.format != FORMAT:
        raise VerificationFailed(
            "digest_mismatch", f"the stored state has format {c.format!r}, this program reads {FORMAT!r}"
        )
    state = ClusterState(c.name)
    state.sequence, state.deleted, state.definition, state.cidrs = c.sequence, c.deleted, c.definition, c.cidrs
    for cidr in c.cidrs:
        state.pool.grow(cidr.capacity)
    state.pool.cursor = c.cursor
    state.networks = dict(c.networks)
    state.overrides = dict(c.overrides)
    for name, node in c.nodes:
        state.nodes[name] = node
        state.by_uid[node.uid] = name
        state.by_address[node.announced] = name
        state.by_mac[node.vtep_mac] = name
        state.external += node.kind == "external"
    state.draining = dict(sorted(c.draining, key=lambda entry: entry[1]))
    resting = sorted(c.quarantined, key=lambda entry: entry[1].until)
    state.quarantined = dict(resting)
    state.quarantine_last = resting[-1][1].until if resting else None
    for index, held in c.ranges:
        state.ranges[index] = held
        state.pool.take(index)
        if index not in state.draining and index not in state.quarantined:
            state.owned[held.node] = held
    state.unreachable = dict(c.unreachable)
    state.fenced = dict(c.fenced)
    for name, reservation in c.clb:
        state.clb[name] = reservation
        for item in reservation.addresses:
            state.clb_addresses[item.address] = name
    state.refusals = {asker: dict(known) for asker, known in c.refusals}
    gateways, backends, holders = c.traffic
    state.gateways, state.backends, state.holders = dict(gateways), dict(backends), dict(holders)
    if state_digest(state) != sha256(text).hexdigest():
        raise VerificationFailed("digest_mismatch", "the stored state contradicts itself", sequence=c.sequence)
    return state
