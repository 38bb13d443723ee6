"""What ``isthmus clb show`` prints: a reservation, its holders, its backends and its last events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from controlplane.console.event_text import sentence
from events.cli.tables import print_table

if TYPE_CHECKING:
    from events.codec import Recorded
    from events.protocol.queries import ClbAnswer, ClbBackendView, HolderView


def event_json(recorded: Recorded) -> dict[str, Any]:
    """One event as JSON."""
    return {
        "sequence": recorded.sequence,
        "time": recorded.envelope.time,
        "type": recorded.envelope.type,
        "sentence": sentence(recorded.event),
        "event": msgspec.to_builtins(recorded.event),
    }


def show(view: ClbAnswer, events: Sequence[Recorded], lines: int) -> None:
    """Print it; the last ``lines`` of the events."""
    times = {recorded.sequence: recorded.envelope.time for recorded in events}
    item = view.reservation
    print_table(
        (f"reservation {item.name}", ""),
        [
            ("subnet", item.subnet),
            *((a.purpose, a.address) for a in item.addresses),
            ("gateway", item.gateway or "none"),
            ("excluded", ", ".join(item.excluded) or "none"),
            ("provider", item.provider),
            *((f"holder of {h.address}", _holder(h, times)) for h in view.holders),
            *((("gateways", ", ".join(view.gateways) or "none"),) if view.holders else ()),
        ],
    )
    if view.holders:
        print_table(
            ("purpose", "port", "backend", "affinity", "check", "health", "since"),
            [
                (
                    b.purpose,
                    f"{b.protocol} {b.port}",
                    f"{b.address}:{b.backend_port}",
                    b.affinity,
                    b.check,
                    _health(b, held={h.purpose for h in view.holders if h.node}),
                    _moment(b.since, times) if b.since else "–",
                )
                for b in view.backends
            ],
            title="backends",
            empty=f"no backend: isthmus clb backend add {item.name} PURPOSE PORT ADDRESS",
        )
    else:
        click.echo(f"Provider {item.provider}: whoever realises the addresses balances them, not our gateways.")
    if lines:
        print_table(
            ("event", "when", "what", "by"),
            [
                (r.sequence, f"{r.envelope.time:%Y-%m-%d %H:%M:%S}Z", sentence(r.event), r.envelope.actor)
                for r in events[-lines:]
            ],
            title=f"its last {min(lines, len(events))} of {len(events)} events "
            f"(all: isthmus replay history clb {item.name})",
            right=("event",),
        )


def _holder(holder: HolderView, times: dict[int, datetime]) -> str:
    if not holder.node:
        return "nobody: isthmus clb gateway add NODE"
    return f"{holder.node} since {_moment(holder.epoch, times)} (its epoch)"


def _health(backend: ClbBackendView, held: set[str]) -> str:
    """In words: only an active gateway checks, and only a verdict that it changed is recorded."""
    if backend.check == "none":
        return "not checked"
    if backend.purpose not in held:
        return "unknown: no holder checks it"
    return "healthy" if backend.healthy else f"UNHEALTHY: {backend.reason}"


def _moment(sequence: int, times: dict[int, datetime]) -> str:
    """An event and how long ago it was, where its time is known."""
    at = times.get(sequence)
    return f"event {sequence}" + (f", {_ago(at)}" if at else "")


def _ago(at: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - at).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.0f} s ago"
