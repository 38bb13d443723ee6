"""A controller's first state: from its own read model if that is of this log, else from nothing.

Folding a million events takes many seconds; reading the rows of ten thousand nodes takes a fraction
of one. The read model is believed only if the log holds the same chain digest at its checkpoint
(so it is of this very log, and the log was not rewritten), and if nobody asked
to verify everything.
"""

from __future__ import annotations

import logging
from pathlib import Path

from controlplane.changes import Changes
from controlplane.controller.replication.command_dedup import CommandDedup
from controlplane.controller.replication.replica import Replica
from controlplane.readmodel.asof import DAMAGE, load_state, moment
from controlplane.readmodel.store import Store, current_generation
from events.chain import CHAIN_HEADER, genesis
from events.errors import IsthmusError, VerificationFailed
from events.log import LogReader

log = logging.getLogger("isthmus.controller")


async def restore(
    event_log: LogReader,
    directory: Path,
    *,
    changes: Changes,
    dedup: CommandDedup,
    trust: bool = True,
) -> Replica:
    """A replica at the read model's checkpoint, or at the beginning.

    Raises VerificationFailed(chain_broken) when the log holds something else at the checkpoint than the read
    model was made from: one of the two was changed, and a person must say which. Cancelled, the file is closed.
    """
    if trust and current_generation(directory):
        store = await Store.open(directory, event_log.cluster)
        try:
            head = store.checkpoint
            if head.sequence and await _agrees(event_log, store):
                state = await store.run(load_state)
                replica = Replica(event_log, changes=changes, dedup=dedup, state=state, head=head)
                replica.last_time = moment(store.time_us) or replica.last_time
                dedup.projected(head.sequence)
                log.info("state restored from %s at %d", store.path.name, head.sequence)
                return replica
        except VerificationFailed as error:
            if error.code == "chain_broken":
                raise
            log.warning("the read model is not used to start from: %s", error.message)
        except IsthmusError as error:
            log.warning("the read model is not used to start from: %s", error.message)
        except DAMAGE as error:  # everything in the file follows from the log
            log.warning("the read model %s is damaged (%s): it is made anew from the log", store.path, error)
            await store.close()
            store = await Store.renew(directory, event_log.cluster)
        finally:
            await store.close()
    return Replica(event_log, changes=changes, dedup=dedup, head=genesis(event_log.cluster))


async def last_sequence_seen(directory: Path, cluster: str) -> int:
    """Up to which event this controller has seen the cluster's log; 0 when it does not remember any.

    Cancelled, the file is closed.
    """
    if not current_generation(directory):
        return 0
    try:
        store = await Store.open(directory, cluster)
    except IsthmusError:  # said by `restore`
        return 0
    try:
        return store.checkpoint.sequence
    finally:
        await store.close()


async def _agrees(event_log: LogReader, store: Store) -> bool:
    """Whether the log's event at the checkpoint carries the checkpoint's digest."""
    at = store.checkpoint.sequence
    async for batch in event_log.read(after=at - 1, until=at):
        for message in batch.messages:
            stated = message.headers.get(CHAIN_HEADER, "")
            if stated == store.checkpoint.hex:
                return True
            raise VerificationFailed(
                "chain_broken",
                f"the read model {store.path} was made from a log whose event {at} has digest "
                f"{store.checkpoint.hex[:16]}…; this log has {stated[:16] or 'none'}… there. "
                f"If the log is right, remove the read model's directory; it is made anew",
                sequence=at,
                computed=store.checkpoint.hex,
                stated=stated,
            )
    raise VerificationFailed(
        "chain_broken",
        f"the read model {store.path} is at event {at}, which this log does not hold: events are missing, or "
        f"it is another log. If the log is right, remove the read model's directory; it is made anew",
        sequence=at,
    )
