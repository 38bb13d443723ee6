"""One replay from its first command to a settled pool: fleet, driver, and what came of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.churn.drive import Driver, Fleet, Tally
from deploy.churn.ledger import Ledger
from deploy.churn.trace import Trace, changes
from events.codec import decode
from events.errors import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nats.aio.client import Client

    from deploy.churn.trace import ChurnStep, LeaveOrder
    from deploy.churn.verify import VerifiedLog
    from events.bus.client import ControllerClient
    from events.log import LogReader

SETTLE_MARGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay did, by the clock of the machine that drove it."""

    traces: Sequence[Trace]
    tally: Tally
    seconds: float

    @property
    def rate(self) -> float:
        """Commands per second."""
        return self.tally.done / self.seconds if self.seconds else 0.0

    def document(self, verified: VerifiedLog, order: str, seed: int) -> dict[str, Any]:
        """The result for a program."""
        return {
            "joins": self.tally.joins,
            "leaves": self.tally.leaves,
            "waits": self.tally.waits,
            "seconds": round(self.seconds, 3),
            "commands_per_second": round(self.rate, 1),
            "latency_ms": {
                "p50": round(self.tally.latency_s(0.5) * 1e3, 2),
                "p99": round(self.tally.latency_s(0.99) * 1e3, 2),
            },
            "leave_order": order,
            "seed": seed,
            "pool": verified.ledger.pool(),
            "proof": {
                "events": verified.head.sequence,
                "head": verified.head.hex,
                "allocations": verified.ledger.allocations,
                "most_held": verified.ledger.most_held,
                "wraps": verified.ledger.wraps,
            },
        }


def plan_changes(traces: Sequence[Trace], ledger: Ledger, order: LeaveOrder, seed: int) -> list[ChurnStep]:
    """The changes of this replay; the log's length makes its names differ from those of earlier ones."""
    taken = frozenset(ledger.underlays.values())
    return list(changes(traces, run=f"{ledger.sequence:x}", order=order, seed=seed, taken=taken))


@asynccontextmanager
async def simulated_fleet(bus: Client, log: LogReader, ledger: Ledger) -> AsyncIterator[Fleet]:
    """A fleet that follows the log from where `ledger` stands and reports for as long as the block runs.

    A cancellation inside of the block ends the fleet, too.
    """
    fleet = Fleet(bus, log, ledger.live)
    task = asyncio.create_task(fleet.run(ledger.sequence), name="churn: fleet")
    try:
        yield fleet
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def drive(
    controller: ControllerClient,
    fleet: Fleet,
    traces: Sequence[Trace],
    plan: Sequence[ChurnStep],
    *,
    window: int,
    progress: Callable[[Tally], None] | None = None,
) -> Outcome:
    """Plays the plan to its end. Raises what `Driver.play` raises. Cancelled, what was sent may take effect."""
    loop = asyncio.get_running_loop()
    driver = Driver(controller, fleet, window=window, patience_s=30.0, progress=progress)
    started = loop.time()
    tally = await driver.play(plan)
    return Outcome(traces, tally, loop.time() - started)


async def read_ledger(log: LogReader) -> Ledger:
    """The ledger of the log as it is now. Raises Refused(cluster_not_defined) for an empty log.

    Cancelled, it leaves nothing behind.
    """
    ledger = Ledger()
    async for batch in log.read(after=0):
        for message in batch.messages:
            ledger.take(decode(message))
    if not ledger.capacity:
        raise Refused(
            "cluster_not_defined",
            f"no cluster is defined on the log of {log.cluster!r}: define one (churn's --define does)",
            cluster=log.cluster,
        )
    return ledger


async def settled(log: LogReader, ledger: Ledger, quarantine_s: float) -> None:
    """Returns once no range drains or rests in quarantine; `ledger` is carried along.

    Raises Unavailable(log_unavailable) when that takes longer than the quarantine and SETTLE_MARGIN_S.
    Cancelled, ``ledger`` stands behind a whole batch.
    """
    limit_s = quarantine_s + SETTLE_MARGIN_S
    try:
        async with asyncio.timeout(limit_s):
            async for batch in log.read(after=ledger.sequence, follow=True):
                for message in batch.messages:
                    ledger.take(decode(message))
                if not batch.pending and len(ledger.held) == len(ledger.live):
                    return
    except TimeoutError as error:
        raise Unavailable(
            "log_unavailable",
            f"{len(ledger.held) - len(ledger.live)} ranges still drain or rest after {limit_s:g} s",
        ) from error
