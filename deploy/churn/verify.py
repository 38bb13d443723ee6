"""Reads a whole log once and verifies it: the hash chain is unbroken and no two owners shared an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy.churn.ledger import Ledger
from events.chain import genesis
from events.reading import verified

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.chain import Head
    from events.log import LogReader


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """The evidence: the ledger at the end of the log, and the chain's head there."""

    ledger: Ledger
    head: Head


async def verify_log(log: LogReader, progress: Callable[[int, int], None] | None = None) -> VerifiedLog:
    """`progress(events read, events known)` is called after each batch.

    Raises VerificationFailed (chain_broken, sequence_gap, invariant_violated) at the first event that breaks a
    promise, and Unavailable when the log cannot be read. Cancelled, it leaves nothing behind.
    """
    ledger, head = Ledger(), genesis(log.cluster)
    async for recorded, head, pending in verified(log, parked=frozenset()):
        for one in recorded:
            ledger.take(one)
        if progress is not None:
            progress(head.sequence, head.sequence + pending)
    return VerifiedLog(ledger, head)
