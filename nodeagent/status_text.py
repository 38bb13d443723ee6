"""Draws the agent's status for people."""

from __future__ import annotations

import time

from events.cli.tables import print_table
from nodeagent.local_files import LocalStatus


def ago(then: float, now: float) -> str:
    """A time in the past as a person says it; ``never`` for 0."""
    if not then:
        return "never"
    seconds = max(0.0, now - then)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.1f} s ago"


def work(counters: dict[str, float]) -> str:
    """What the agent has done so far, in one line."""
    number = {name: f"{counters.get(name, 0):.0f}" for name in ("resyncs", "direct", "repaired")}
    took_ms = counters.get("last_resync_s", 0) * 1000
    return (
        f"{number['resyncs']} comparisons (the last took {took_ms:.0f} ms), {number['direct']} direct changes, "
        f"{number['repaired']} rows repaired"
    )


def rows(status: LocalStatus, *, running: bool, now: float) -> list[tuple[str, str]]:
    """What to show, as (name, value)."""
    age = ago(status.last_event_at, now)
    matches = status.kernel_digest and status.kernel_digest == status.expected_digest
    attestation = "not known" if not status.kernel_digest else "as the log says" if matches else "DIFFERS"
    found = [
        ("node", f"{status.node} (uid {status.uid})"),
        ("state", f"{status.state}, pid {status.pid}" if running else f"not running (was {status.state})"),
        ("range", f"{status.range or '–'} (epoch {status.epoch})"),
        (
            "tunnel",
            f"{status.device}, vni {status.vni}, port {status.port}, {status.vtep_mac}, MTU {status.mtu}",
        ),
        ("underlay", status.underlay + (f", announced {status.announced}" if status.announced else "")),
        ("peers", str(status.peers)),
        ("view", f"event {status.sequence}, decided {age}; applied {status.applied}"),
        ("behind", f"{status.behind} events; last word from the bus {ago(status.bus_contact_at, now)}"),
        (
            "bus",
            "connected" if status.bus_connected and running else "NOT connected: the rows stay as they are",
        ),
        ("kernel", f"{attestation} ({status.kernel_digest[:16] or '–'}…)"),
        ("work", work(status.counters)),
        ("written", ago(status.written_at, now)),
    ]
    if status.gateway:
        found.append(("gateway", status.gateway))
    found += [("holds", address) for address in status.held]
    return [*found, *(("condition", condition) for condition in status.conditions)]


def show(status: LocalStatus, *, running: bool) -> None:
    """Print it."""
    print_table(("", ""), rows(status, running=running, now=time.time()))
