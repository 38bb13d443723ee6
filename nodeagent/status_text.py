"""Draws the agent's status for people."""

from __future__ import annotations

from events.cli.tables import print_table
from events.protocol.ways import encrypted_words
from events.status import SILENT_INTERVALS
from nodeagent.fastpath.layout import REASONS
from nodeagent.local_files import LocalStatus, LocalWay, now_of

WAYS_SHOWN = 12
"""Peers whose way is shown; `--json` has more."""


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


def _state(status: LocalStatus, *, running: bool, silent: bool, now: float) -> str:
    if not running:
        return f"not running (was {status.state})"
    if silent:
        return f"NOT RESPONDING since {ago(status.written_at, now)} (was {status.state}), pid {status.pid}"
    return f"{status.state}, pid {status.pid}"


def _path(status: LocalStatus, now: float) -> str:
    """Whether packets of this node's pods pass, and when one last did."""
    if not status.path:
        return "not known"
    last = f"one last passed {ago(status.path_confirmed_at, now)}"
    words = {
        "confirmed": f"pass: {last}",
        "failing": f"DO NOT PASS: {last}",
        "not confirmed": f"not confirmed: {last}",
        "no peers": "no peers to ask yet",
    }
    return words.get(status.path, status.path)


def _way(way: LocalWay, now: float) -> str:
    via = f" via {way.via}" if way.via else ""
    why = f" ({way.why})" if way.why else ""
    return (
        f"{way.way}{via}{encrypted_words(way.way, encrypted=way.encrypted)}, changed {ago(way.since, now)}{why}"
    )


def fast_path(status: LocalStatus) -> str:
    """Which way packets took so far, in one line."""
    names = ("fast_out", "fast_in", "slow_out", "slow_in")
    out, into, slow_out, slow_in = (status.counters.get(f"fastpath_{name}", 0) for name in names)
    if not status.fastpath.startswith("on"):
        return status.fastpath
    fast, slow = out + into, slow_out + slow_in
    return f"{status.fastpath}; {fast:,.0f} packets by it, {slow:,.0f} of such flows by the stack"


def not_fast(status: LocalStatus) -> str:
    """Why packets of peers took the stack, and how many; empty: none did."""
    counted = ((status.counters.get(f"fastpath_{name}", 0), words) for name, words in REASONS.items())
    return ", ".join(f"{count:,.0f} {words}" for count, words in counted if count)


def rows(status: LocalStatus, *, running: bool, now: float) -> list[tuple[str, str]]:
    """What to show, as (name, value)."""
    age = ago(status.last_event_at, now)
    silent = running and now - status.written_at > SILENT_INTERVALS * status.interval_s
    stale = f" as of {ago(status.written_at, now)}" if silent or not running else ""
    matches = status.kernel_digest and status.kernel_digest == status.expected_digest
    attestation = "not known" if not status.kernel_digest else "in sync with the log" if matches else "DIFFERS"
    found = [
        ("node", f"{status.node} (uid {status.uid})"),
        ("state", _state(status, running=running, silent=silent, now=now)),
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
        *([("fast path", fast_path(status))] if status.fastpath else []),
        *([("not fast", not_fast(status))] if not_fast(status) else []),
        ("kernel", f"{attestation}{stale} ({status.kernel_digest[:16] or '–'}…)"),
        ("packets", _path(status, now) + stale),
        *([("behind NAT", status.nat + stale)] if status.nat else []),
        *([("ways", status.ways + stale)] if status.ways else []),
        *([("encryption", status.encryption + stale)] if status.encryption else []),
        *((f"to {way.peer}", _way(way, now)) for way in status.peer_ways[:WAYS_SHOWN]),
        ("work", work(status.counters)),
        ("written", ago(status.written_at, now)),
    ]
    if status.gateway:
        found.append(("gateway", status.gateway))
    found += [("holds", address) for address in status.held]
    return [*found, *(("condition", condition) for condition in status.conditions)]


def show(status: LocalStatus, *, running: bool) -> None:
    """Print it."""
    print_table(("", ""), rows(status, running=running, now=now_of(status)))
