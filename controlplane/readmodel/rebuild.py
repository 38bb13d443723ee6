"""A read model made anew from the log, beside the live one, switched in only when it is right.

Two independent things are made from the same events: the rows, and the fold. Only when the state that
the rows say has the digest of the state that the fold says is the new generation made current. A
controller that runs on the directory notices and goes on from the new file's own checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.readmodel.asof import load_state
from controlplane.readmodel.store import Store, generation_file, next_generation, switch
from events.errors import VerificationFailed
from events.log import LogReader
from events.reading import verified

BATCH = 4000


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What was made: the file's name, the sequence and state digest that it stands at, seconds taken."""

    file: str
    sequence: int
    digest: str
    took_s: float


async def rebuild(
    event_log: LogReader,
    directory: Path,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Rebuilt:
    """Project the whole log, without what is parked in it, into a new generation, compare, switch.

    Raises VerificationFailed when the log's chain is broken, an event cannot be applied, or the digests differ;
    the live generation then stays as it is and the new file is removed. Cancelled, the new file is removed and
    the live generation stays as it is.
    """
    started = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  once
    number = next_generation(directory)
    path = generation_file(directory, number)
    store = await Store.create(path, event_log.cluster)
    try:
        state = ClusterState(event_log.cluster)
        async for recorded, head, pending in verified(event_log, store.checkpoint):
            for one in recorded:
                evolve(state, one.sequence, one.event)
            for start in range(0, len(recorded), BATCH):
                await store.apply(recorded[start : start + BATCH])
            on_progress(head.sequence, head.sequence + pending)
        rows = state_digest(await store.run(load_state))
        fold = state_digest(state)
        if rows != fold:
            raise VerificationFailed(  # noqa: TRY301  cleaned up below
                "invariant_violated",
                f"at event {state.sequence} the rows say state {rows[:16]}…, the fold of the log says "
                f"{fold[:16]}…: the live read model stays",
                sequence=state.sequence,
                rows=rows,
                fold=fold,
            )
    except BaseException:
        await store.close()
        for leftover in directory.glob(f"{path.name}*"):  # noqa: ASYNC240  on failure only
            leftover.unlink(missing_ok=True)
        raise
    await store.close()
    switch(directory, number)
    return Rebuilt(file=path.name, sequence=state.sequence, digest=fold, took_s=time.monotonic() - started)
