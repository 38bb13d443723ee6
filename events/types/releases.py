"""Which release knows which type of event: the one place that says so.

A controller follows the log only up to the first event of a type that it does not know, and an agent passes
over it. So an event of a type that is newer than a participant who reports is not written before that one is
upgraded (:func:`controlplane.cluster.decide.decide`), unless its kind is in the log already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from events.types.base import Event
from events.types.cluster import AdoptionBegun, AdoptionEnded, ClusterEncryptionChanged
from events.types.entry import EntryAdded, EntryRemoved
from events.types.node import NodeBound, NodeFenced, NodeKeyChanged, NodeNatChanged
from events.types.path import PathLost, PathRestored
from events.types.range import RangeAdopted
from events.types.record import SharedTokenUsed

FIRST = "0.2.0"
"""The oldest release that a cluster may have: it knows every type that :data:`KNOWN_SINCE` does not name."""

KNOWN_SINCE: Mapping[type[Event], str] = {
    NodeBound: "0.3.0",
    AdoptionBegun: "0.3.0",
    RangeAdopted: "0.3.0",
    AdoptionEnded: "0.3.0",
    PathLost: "0.3.0",
    PathRestored: "0.3.0",
    EntryAdded: "0.3.0",
    EntryRemoved: "0.3.0",
    ClusterEncryptionChanged: "0.3.0",
    NodeKeyChanged: "0.3.0",
    NodeNatChanged: "0.3.0",
    SharedTokenUsed: "0.3.0",
}
"""Type → the first release that knows it. A test holds it against the schemas of all earlier releases."""

ENDS: frozenset[type[Event]] = frozenset({AdoptionEnded, PathRestored, EntryRemoved})
"""Types that end what another one began: where one of these can be written, that one is in the log."""

SAID_AGAIN: frozenset[type[Event]] = frozenset({NodeKeyChanged, NodeNatChanged})
"""Types that a join brings along, and the next one again: they are left out of it for the time being."""

_NUMBERS = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")


def release(version: str) -> tuple[int, int, int] | None:
    """The numbers of a version (``0.3.0``, ``0.3.0.dev1``); None when it has none."""
    found = _NUMBERS.match(version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def since(event: Event) -> str:
    """The first release that is needed to follow this event, if it is not in the log what it ends."""
    if type(event) in ENDS or (isinstance(event, ClusterEncryptionChanged) and event.scope == "off"):
        return FIRST
    if isinstance(event, NodeNatChanged) and not event.behind:
        return FIRST
    return known_since(event)


def known_since(event: Event) -> str:
    """The first release that can follow this event at all. A former member's fence is newer than its type."""
    if isinstance(event, NodeFenced) and event.former:
        return "0.3.0"
    return KNOWN_SINCE.get(type(event), FIRST)


def to_keep_to(version: str) -> str:
    """A release to which a cluster may go back, checked. Raises ValueError with the reason."""
    numbers = release(version)
    if numbers is None or _NUMBERS.fullmatch(version) is None:
        raise ValueError(f"{version!r} is no release: write it like {FIRST}")
    if not follows(version, FIRST):
        raise ValueError(f"{version} is older than {FIRST}, the oldest release that this one can go back to")
    return version


def follows(version: str, first: str) -> bool:
    """Whether a participant of ``version`` is of the release ``first`` or a later one; if it says none: yes."""
    numbers, wanted = release(version), release(first)
    return numbers is None or wanted is None or numbers >= wanted
