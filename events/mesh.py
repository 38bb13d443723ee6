"""What an agent measured of its peers through the tunnel: a part of its report, bounded.

A report names those peers that were measured since the last one, and those in trouble; whoever reads collects.
A peer is named by the epoch of its range, which both sides know from the log.
"""

from __future__ import annotations

from typing import Final

import msgspec

from events.errors import BadRequest
from events.printable import printable

ANSWERED: Final = 1
"""The peer's agent answered."""
KERNEL: Final = 2
"""The peer's kernel answers, its agent does not: packets pass."""
SILENT: Final = 3
"""Neither answers any more; both did before."""
UNSURE: Final = 4
"""The agent does not answer any more, and the kernel there never did: the agent may just be away."""
NEVER: Final = 5
"""Nobody there has answered since this agent started."""
STATES = {
    ANSWERED: "ok",
    KERNEL: "kernel only",
    SILENT: "silent",
    UNSURE: "agent away",
    NEVER: "never answered",
}

LARGE_UNKNOWN, LARGE_OK, LARGE_LOST = 0, 1, 2

PEERS_MAX = 96
"""Most peers in one report."""
TRACES_MAX, STEPS_MAX, STEP_TEXT_MAX = 3, 8, 200
_BIG = 2**53
_AGE_MAX_S = 1e9


class PeerSeen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One peer, by the epoch of its range.

    ``at_s``: seconds before the report, of the last answer; for a peer in trouble of the first question that
    was not answered. ``loss`` is in thousandths of the last 16 questions; ``heard_s``: seconds before the
    report
    at which a question of that peer last came (−1: none has). ``large`` speaks of packets as large as the path
    should carry, and ``large_s`` is how long ago the last of these was answered (−1: none was).
    """

    epoch: int
    state: int
    at_s: float = 0.0
    rtt_us: int = 0
    jitter_us: int = 0
    loss: int = 0
    heard_s: float = -1.0
    large: int = LARGE_UNKNOWN
    large_s: float = -1.0


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One hop of a trace. ``ok``: 1 passed, 0 did not, -1 could not be looked at."""

    name: str
    ok: int
    text: str = ""


class Trace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The way to one peer, hop by hop, as this node found it ``age_s`` seconds before the report."""

    epoch: int
    age_s: float
    steps: tuple[Step, ...] = ()


class MeshReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``silent`` and ``measured`` count all peers, also those beyond what is named. ``unable``: why it
    cannot ask."""

    peers: tuple[PeerSeen, ...] = ()
    measured: int = 0
    silent: int = 0
    unable: str = ""
    traces: tuple[Trace, ...] = ()


def checked_mesh(report: MeshReport) -> MeshReport:
    """The report cut to its bounds, with printable texts. Raises BadRequest(bad_request) for impossible
    numbers."""
    for seen in report.peers:
        _within(seen.epoch, 1, _BIG)
        _within(seen.state, ANSWERED, NEVER)
        _within(seen.large, LARGE_UNKNOWN, LARGE_LOST)
        _within(seen.loss, 0, 1000)
        for number in (seen.rtt_us, seen.jitter_us):
            _within(number, 0, 10**9)
        _within(seen.at_s, 0, _AGE_MAX_S)
        _within(seen.heard_s, -1, _AGE_MAX_S)
        _within(seen.large_s, -1, _AGE_MAX_S)
    for number in (report.measured, report.silent):
        _within(number, 0, _BIG)
    traces = tuple(
        Trace(
            trace.epoch,
            trace.age_s,
            tuple(
                Step(printable(step.name, 40), step.ok, printable(step.text, STEP_TEXT_MAX))
                for step in trace.steps[:STEPS_MAX]
            ),
        )
        for trace in report.traces[:TRACES_MAX]
    )
    for trace in traces:
        _within(trace.epoch, 1, _BIG)
        _within(trace.age_s, 0, _AGE_MAX_S)
        for step in trace.steps:
            _within(step.ok, -1, 1)
    return MeshReport(
        peers=report.peers[:PEERS_MAX],
        measured=report.measured,
        silent=report.silent,
        unable=printable(report.unable, STEP_TEXT_MAX),
        traces=traces,
    )


def _within(value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also for what is no number
        raise BadRequest("bad_request", f"mesh: a number is outside {low:g} … {high:g}", field="mesh")
