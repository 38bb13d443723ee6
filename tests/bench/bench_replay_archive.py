"""Fold and verification of an archive of a million events, and questions about its middle.

All by CPU time, which is what an idle machine's clock says of them: they read from memory and wait for nothing.

The archive is made once (seeded, about a minute) and kept in ``build/bench``; the read model beside it
is the controller's own projection of the same log.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controlplane.readmodel.schema import VERSION

EVENTS = 1_000_000
BUILD = Path(__file__).resolve().parents[2] / "build" / "bench"
ARCHIVE = BUILD / "million-3.isthmus"
READ_MODEL = BUILD / f"million-3-read-model-{VERSION}"


def row(
    name: str,
    ours: float,
    baseline: float | None,
    unit: str,
    target: float | None,
    better: str,
    digits: int = 1,
) -> dict[str, Any]:
    """One row of the table; ``ratio`` is ours over baseline."""
    ratio = None if baseline is None else round(ours / baseline, 4)
    measured = ours if ratio is None else ratio
    ok = target is None or (measured >= target if better == "higher" else measured <= target)
    return {
        "name": name,
        "ours": round(ours, digits),
        "baseline": None if baseline is None else round(baseline, digits),
        "unit": unit,
        "ratio": ratio if baseline is not None else round(ours, 4),
        "target": target,
        "better": better,
        "ok": ok,
    }


def archive() -> Path:
    """The archive; made when it is missing."""
    from events.chain import genesis
    from replay.archive.writer import ArchiveWriter
    from replay.sample import Sample

    if not ARCHIVE.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        part = ARCHIVE.with_suffix(".part")
        part.unlink(missing_ok=True)
        writer = ArchiveWriter.create(part, "sample", genesis("sample"), source="benchmark")
        for batch in Sample("sample", seed=1).batches(EVENTS):
            writer.add(batch)
        writer.finish()
        part.rename(ARCHIVE)
    return ARCHIVE


async def read_model() -> Path:
    """The read model of the whole archive, projected as the controller does; what is missing of it is made."""
    from controlplane.readmodel.store import Store
    from events.codec import decode
    from replay.archive.reader import ArchiveLog

    log = ArchiveLog(archive())
    store = await Store.open(READ_MODEL, log.cluster)
    try:
        async for batch in log.read(after=store.checkpoint.sequence):
            await store.apply([decode(message) for message in batch.messages])
        assert store.checkpoint == await log.head(), "the projection has stopped"
    finally:
        await store.close()
        log.close()
    return READ_MODEL


def best(times: int, work: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of the fastest of some runs, of this process's CPU unless told otherwise: noise only adds."""
    took = []
    for _ in range(times):
        gc.collect()
        began = clock()
        work()
        took.append(clock() - began)
    return min(took)


def _children_cpu_s() -> float:
    """CPU seconds of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run() -> list[dict[str, Any]]:
    """The rows of the replay issue's table that need the million events."""
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    from controlplane.cluster.evolve import fold
    from controlplane.cluster.state import ClusterState
    from replay.archive.reader import ArchiveLog
    from replay.archive_index import archive_history
    from replay.history import Point
    from replay.queries.states import ReadModel, States
    from replay.queries.who import who
    from replay.verification.outcome import Wanted
    from replay.verification.verify import verify

    path = archive()
    log = ArchiveLog(path)
    history = await archive_history(log)
    count = history.end
    rows: list[dict[str, Any]] = []

    def decode_only() -> None:
        for place in log.places:
            log.facts(place)

    def fold_all() -> ClusterState:
        state = ClusterState(log.cluster)
        for place in log.places:
            fold(state, [(fact.seq, fact.body) for fact in log.facts(place)])
        return state

    # A verification works in several processes. By their CPU time: what the clock would say if this machine's
    # cores were theirs alone. Each is compared with the folds just before and behind it; the median counts.
    cores = os.cpu_count() or 1
    compared: list[tuple[float, float, float]] = []
    clock: list[tuple[float, float]] = []
    decoding, folding = best(3, decode_only), best(1, fold_all)
    beside = folding
    for _ in range(3):
        gc.collect()
        before, children_before = time.process_time(), _children_cpu_s()
        report = await verify(history, Wanted())
        assert report.sound, report.findings[:3]
        mine, theirs = time.process_time() - before, _children_cpu_s() - children_before
        behind = best(1, fold_all)
        took = max(mine, (mine + theirs) / cores)
        compared.append(((beside + behind) / 2 / took, took, (beside + behind) / 2))
        clock.append((report.took_s, (beside + behind) / 2))
        folding, beside = min(folding, behind), behind
    _, verifying, fold_beside = sorted(compared)[1]
    by_clock, fold_then = min(clock)
    rows.append(
        row(
            "fold of an archive of 1,000,000 events / decoding them with msgspec",
            count / folding,
            count / decoding,
            "events/s",
            0.3,
            "higher",
            0,
        )
    )
    rows.append(
        row(
            f"verify of the same, all checks, on {cores} cores / fold alone",
            count / verifying,
            count / fold_beside,
            "events/s",
            0.4,
            "higher",
            0,
        )
    )
    rows.append(
        row("the same by the clock, noisy", count / by_clock, count / fold_then, "events/s", None, "higher", 0)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    rows.append(row("memory of fold and verify, this process", peak, None, "MB", 300, "lower"))
    rows.append(row("memory of verify, the largest worker process", workers, None, "MB", 300, "lower"))

    model = ReadModel.open(await read_model(), log.cluster)
    states = States(history, model)
    middle = count // 2
    plain, _ = await States(history).at(middle)
    modelled, origin = await states.at(middle)
    from controlplane.cluster.digest import state_digest

    assert origin.method == "read model"
    assert state_digest(modelled) == state_digest(plain)
    asof = best(15, lambda: model.state(middle))
    rows.append(
        row(
            "state --at in the middle, read model present / full fold",
            asof * 1e3,
            folding * 1e3,
            "ms",
            0.007,
            "lower",
        )
    )
    model.close()

    addresses = [f"10.{64 + i % 15}.{i * 37 % 250}.{i * 11 % 250}" for i in range(40)]
    asked = []
    for i, address in enumerate(addresses):
        fastest = float("inf")
        for _ in range(3):
            began = time.process_time()
            fresh = ArchiveLog(path)  # nothing cached: as a command would
            try:
                await who(await archive_history(fresh), address, Point(count * (i + 1) // 41, None, ""))
            finally:
                fresh.close()
            fastest = min(fastest, time.process_time() - began)
        asked.append(fastest)
    rows.append(
        row(
            "who --ip, archive of 1,000,000 events, median",
            statistics.median(asked) * 1e3,
            None,
            "ms",
            50,
            "lower",
        )
    )
    rows.append(row("who --ip, the slowest of 40", max(asked) * 1e3, None, "ms", 50, "lower"))
    log.close()

    def command() -> None:
        executable = Path(sys.executable).with_name("isthmus")
        subprocess.run([executable, "replay", "who", "--help"], check=True, stdout=subprocess.DEVNULL)

    rows.append(row("start of a replay command", best(5, command, _children_cpu_s), None, "s", 0.4, "lower", 3))

    def whole() -> None:
        executable = Path(sys.executable).with_name("isthmus")
        asked_for = ["replay", "who", "--ip", "10.64.7.9", "--at", "500000", "--archive", str(path), "--json"]
        subprocess.run([executable, *asked_for], check=True, stdout=subprocess.DEVNULL)

    rows.append(
        row(
            "the whole command who --ip on 1,000,000 events",
            best(3, whole, _children_cpu_s),
            None,
            "s",
            None,
            "lower",
            3,
        )
    )
    return rows


if __name__ == "__main__":
    for line in run():
        print(line)
