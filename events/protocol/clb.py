"""Who holds which CLB address, and which backends serve it: the shapes that both sides share.

The controller keeps them in its state, agents in their view, snapshots carry them from one to the
other. Only shapes, and what one event makes of one of them: no decision, no fold.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple, Self

import msgspec

from events.types import (
    Affinity,
    CheckKind,
    ClbBackendAdded,
    ClbBackendHealthChanged,
    ClbBackendRemoved,
    ClbHolderAssigned,
    ClbReserved,
    EntryAdded,
    Protocol,
)


class BackendKey(NamedTuple):
    """What makes a backend the same one: reservation, purpose, listening port, and where it is."""

    name: str
    purpose: str
    protocol: Protocol
    port: int
    address: str
    backend_port: int

    @classmethod
    def of(cls, event: ClbBackendAdded | ClbBackendRemoved | ClbBackendHealthChanged) -> BackendKey:
        """The backend that an event is about."""
        return cls(event.name, event.purpose, event.protocol, event.port, event.address, event.backend_port)

    @property
    def listener(self) -> tuple[str, str, str, int]:
        """The port that it serves, together with others."""
        return self.name, self.purpose, self.protocol, self.port


class Backend(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A backend's settings and its last recorded health.

    ``added`` is the sequence of the settings, ``changed`` of the last change of health (0: none yet:
    a new backend counts as healthy), ``changed_at`` the moment of that decision.
    """

    affinity: Affinity
    check: CheckKind
    check_path: str
    check_port: int
    check_interval_s: float
    check_timeout_s: float
    rise: int
    fall: int
    added: int
    healthy: bool = True
    changed: int = 0
    changed_at: datetime | None = None
    reason: str = ""

    @classmethod
    def added_by(cls, event: ClbBackendAdded, sequence: int, known: Self | None) -> Self:
        """The backend as an event adds it; one that is ``known`` keeps its health."""
        return cls(
            affinity=event.affinity,
            check=event.check,
            check_path=event.check_path,
            check_port=event.check_port,
            check_interval_s=event.check_interval_s,
            check_timeout_s=event.check_timeout_s,
            rise=event.rise,
            fall=event.fall,
            added=sequence,
            healthy=known.healthy if known else True,
            changed=known.changed if known else 0,
            changed_at=known.changed_at if known else None,
            reason=known.reason if known else "",
        )

    def judged_by(self, event: ClbBackendHealthChanged, sequence: int) -> Self:
        """The same backend with another health."""
        return msgspec.structs.replace(
            self, healthy=event.healthy, changed=sequence, changed_at=event.at, reason=event.reason
        )


class Holder(msgspec.Struct, frozen=True, gc=False):
    """The gateway that holds an address since ``epoch``."""

    name: str
    purpose: str
    address: str
    node: str
    uid: str
    epoch: int

    @classmethod
    def assigned_by(cls, event: ClbHolderAssigned, sequence: int) -> Self:
        """The gateway that an event gives the address to."""
        return cls(event.name, event.purpose, event.address, event.node, event.uid, sequence)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """Sources outside of the overlay that may reach pods; ``since`` is the sequence of the event that says so.

    ``address`` is that of a CLB pair, by which they come.
    """

    sources: tuple[str, ...]
    address: str
    since: int

    @classmethod
    def of(cls, event: EntryAdded, sequence: int) -> Self:
        """The entry as an event makes it."""
        return cls(event.sources, event.address, sequence)


class Traffic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a gateway needs to know, in a snapshot. ``gateways``: node → sequence of its mark.

    ``former``: held address → underlay address of the machine that held it before, kept by agents only.
    """

    reservations: tuple[ClbReserved, ...] = ()
    gateways: dict[str, int] = {}
    backends: tuple[tuple[BackendKey, Backend], ...] = ()
    holders: tuple[Holder, ...] = ()
    former: dict[str, str] = {}
    entries: dict[str, Entry] = {}
