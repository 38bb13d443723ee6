"""Values of the state that stand beside members and ranges: bindings, fences, refusals, lost paths. Frozen."""

from __future__ import annotations

from datetime import datetime
from typing import Self

import msgspec

from events.types import NodeNatChanged, PathLost, SharedTokenUsed


class Bound(msgspec.Struct, frozen=True, gc=False):
    """Which Kubernetes Node a member is: its UID, and since which sequence."""

    node_uid: str
    since: int


class Admission(msgspec.Struct, frozen=True, gc=False):
    """How a name was let in by a join token for several machines; see :class:`events.types.SharedTokenUsed`."""

    token: str
    public_key: str
    use: int
    kind: str
    site: str
    at: datetime
    since: int

    @classmethod
    def of(cls, event: SharedTokenUsed, sequence: int) -> Self:
        """What that event, stored there, says."""
        return cls(event.token, event.public_key, event.use, event.kind, event.site, event.at, sequence)


class BehindNat(msgspec.Struct, frozen=True, gc=False):
    """As which address others saw a member behind NAT (empty: its agent was told so), since which sequence."""

    seen_as: str
    since: int

    @classmethod
    def of(cls, event: NodeNatChanged, sequence: int) -> Self:
        """What that event, stored there, says."""
        return cls(event.seen_as, sequence)


class Adoption(msgspec.Struct, frozen=True, gc=False):
    """What nodes are being taken over from, by which plan (its SHA-256), and since which sequence."""

    source: str
    plan: str
    since: int


class Fenced(msgspec.Struct, frozen=True, gc=False):
    """A fenced uid: which node it was, since which sequence, why, and who took its place."""

    node: str
    since: int
    cause: str
    by_uid: str


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A recorded refusal: the sequence at which it was first recorded, and what was said."""

    since: int
    code: str
    message: str


class LostPath(msgspec.Struct, frozen=True, gc=False):
    """A path that is lost since the event at ``sequence``; see :class:`events.types.PathLost`."""

    scope: str
    a: str
    b: str
    fault: str
    broken_from: str
    broken_to: str
    sequence: int
    since: datetime | None

    @classmethod
    def of(cls, event: PathLost, sequence: int) -> Self:
        """What that event, stored there, says."""
        return cls(
            event.scope,
            event.a,
            event.b,
            event.fault,
            event.broken_from,
            event.broken_to,
            sequence,
            event.since,
        )


PathKey = tuple[str, str, str]
"""Scope, a, b."""
