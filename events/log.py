"""The port to the log: the only truth, append-only, gap-free, one total order per cluster.

Implementations: :mod:`events.memory` (one process), :mod:`events.jetstream.log` (production), and the
replay tool's archive file (reading only). ``tests/contract`` runs one suite against all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from events.chain import Head
from events.codec import OutgoingMessage, StoredMessage
from events.errors import Refused

BATCH_LIMIT = 1000
"""Most messages of one atomic append (the server's limit on atomic batches, error 10199)."""

FORGOTTEN_S = 10.0
"""After so long without a word the server forgets a batch that was begun; it keeps at most 50 of a stream."""


def check_count(messages: Sequence[OutgoingMessage]) -> None:
    """Raises Refused(event_too_large) for more messages than one append takes."""
    if len(messages) > BATCH_LIMIT:
        raise Refused(
            "event_too_large",
            f"{len(messages)} events in one append; at most {BATCH_LIMIT}",
            count=len(messages),
            limit=BATCH_LIMIT,
        )


class ReadBatch(NamedTuple):
    """Consecutive messages, and how many more the log is known to hold behind them (0: caught up).

    A following reader gets an empty batch with ``pending`` 0 when it first catches up with an
    already known end, so that it knows that it is live; perhaps again whenever the log has confirmed that.
    """

    messages: Sequence[StoredMessage]
    pending: int


class LogReader(Protocol):
    """Reading from a position that the reader owns."""

    @property
    def cluster(self) -> str:
        """The cluster whose log this is."""
        ...

    def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        """Yield everything after sequence ``after``, in order and without gaps.

        Stops behind ``until`` (inclusive), or at the end of the log as it was when reading began;
        with ``follow`` it goes on for ever instead, and survives reconnects. Closing the iterator
        or cancelling the task releases everything.

        Raises Unavailable when the log cannot be reached (never while following: it retries), and
        VerificationFailed(sequence_gap) when the log itself has a hole.
        """
        ...

    async def head(self) -> Head:
        """The last sequence and its chain digest; the genesis head when empty. Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        ...


@runtime_checkable
class SendsAhead(Protocol):
    """A log that can be handed messages before it is known whether they will be appended."""

    async def send_ahead(self, messages: Sequence[OutgoingMessage], *, expected: int) -> None:
        """Send what the next append will probably be: that append then only has to confirm it.

        Called again with the same sequence of messages, grown since, it sends what has come to it. Nothing is
        stored by this. Only an append of this very sequence of messages behind ``expected`` makes use of it;
        whatever else comes, the log forgets them (after :data:`FORGOTTEN_S`). It raises nothing: what could
        not be sent, the append sends. Cancelled, some of the messages may be on their way.
        """
        ...


class EventLog(LogReader, Protocol):
    """Reading and writing. Only a controller writes."""

    async def vouched_end(self, *, timeout_s: float = 3.0) -> int:
        """The log's last sequence at some moment after the call: what was acknowledged before is in it.

        Unlike :meth:`head`, which any server answers from what it has, this is vouched for by a majority.
        Raises Unavailable when that cannot be had within ``timeout_s``. Cancelled, it leaves nothing behind.
        """
        ...

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        """Store all messages directly behind sequence ``expected``, or none; return the last sequence.

        At most :data:`BATCH_LIMIT` messages. Idempotent: when exactly these messages (by
        id and chain digest) already stand behind ``expected``, it returns as the first call did.

        An empty append stores nothing and checks ``expected``. Ids that were stored further up not
        long ago are refused too, with ``repeated`` in the details: their command has happened.

        Raises Refused(wrong_last_sequence, details ``expected``/``actual``), Refused(event_too_large),
        OutcomeUnknown when the acknowledgement did not come in time, and Unavailable when nothing was sent.
        Cancelled, the messages may be stored all the same; the same ids have no second effect.
        """
        ...
