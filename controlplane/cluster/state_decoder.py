"""The canonical text of a state → the state: so that a capsule can carry what stood before it.

The inverse of :func:`controlplane.cluster.digest.canonical`; the digest of what comes out must equal the
hash of what went in, and is compared.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from operator import itemgetter
from typing import Any

import msgspec

from controlplane.cluster.digest import FORMAT, state_digest
from controlplane.cluster.state import FURTHER, Cidr, ClusterState, Fenced, Node, Range, Refusal
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
        behind = msgspec.json.decode(text, type=list[msgspec.Raw])[len(_Canonical.__struct_fields__) :]
        further: dict[str, Any] = {field: {} for field in FURTHER}
        for (field, kind), raw in zip(FURTHER.items(), behind, strict=False):
            further[field] = dict(msgspec.json.decode(raw, type=kind.entries))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationFailed("digest_mismatch", f"the stored state is unreadable: {error}") from error
    if c.format != FORMAT:
        raise VerificationFailed(
            "digest_mismatch", f"the stored state has format {c.format!r}, this program reads {FORMAT!r}"
        )
    gateways, backends, holders = c.traffic
    state = ClusterState.from_parts(
        c.name,
        sequence=c.sequence,
        deleted=c.deleted,
        definition=c.definition,
        cidrs=c.cidrs,
        cursor=c.cursor,
        networks=dict(c.networks),
        overrides=dict(c.overrides),
        nodes=dict(c.nodes),
        ranges=dict(c.ranges),
        draining=dict(sorted(c.draining, key=itemgetter(1))),
        quarantined=dict(sorted(c.quarantined, key=lambda entry: entry[1].until)),
        unreachable=dict(c.unreachable),
        fenced=dict(c.fenced),
        clb=dict(c.clb),
        refusals={asker: dict(known) for asker, known in c.refusals},
        gateways=dict(gateways),
        backends=dict(backends),
        holders=dict(holders),
        parked=frozenset(),  # not in the text
        **further,
    )
    if state_digest(state) != sha256(text).hexdigest():
        raise VerificationFailed("digest_mismatch", "the stored state contradicts itself", sequence=c.sequence)
    return state
