"""Where and when an event stands, and who caused it: part of almost every answer."""

from __future__ import annotations

from datetime import datetime

import msgspec

from events.codec import Recorded

NOTICEABLE_S = 1.0
"""Server time and event time that differ by more are both shown."""


class Stamp(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event's place. ``recorded_at`` is the server's clock, ``time`` the deciding controller's (UTC)."""

    sequence: int
    type: str
    recorded_at: datetime
    time: datetime
    actor: str
    command_id: str
    trace_id: str = ""

    @property
    def skew_s(self) -> float:
        """Seconds from the event's own time to the server's."""
        return (self.recorded_at - self.time).total_seconds()


def stamp(recorded: Recorded) -> Stamp:
    """The stamp of an event."""
    envelope = recorded.envelope
    return Stamp(
        sequence=recorded.sequence,
        type=envelope.type,
        recorded_at=recorded.recorded_at,
        time=envelope.time,
        actor=envelope.actor,
        command_id=envelope.command_id,
        trace_id=trace_id(envelope.traceparent),
    )


def trace_id(traceparent: str) -> str:
    """The 32 digits of the trace id in a W3C ``traceparent``; empty when there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
