"""Who is in the cluster, folded from the log by the lab itself: a check must not trust the controller."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from deploy.churn.ledger import Ledger
from events import types
from events.codec import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from events.codec import Recorded
    from events.log import LogReader


@dataclass(frozen=True, slots=True)
class Member:
    """A live node with its range. `epoch` is the sequence of the allocation."""

    node: str
    uid: str
    kind: str
    underlay: str
    mac: str
    range: str = ""
    index: int = -1
    cursor_after: int = -1
    epoch: int = 0

    @property
    def vtep(self) -> str:
        """The range's first address: next hop of the routes to it."""
        return self.range.split("/")[0]


@dataclass(slots=True)
class Members:
    """Follows the log; `changed` is set at every batch."""

    live: dict[str, Member] = field(default_factory=dict)
    plan: types.ClusterDefined | None = None
    behind_nat: dict[str, str] = field(default_factory=dict)  # node → as which address others saw it
    left_at: dict[str, float] = field(default_factory=dict)  # node → when the event was stored, Unix seconds
    ledger: Ledger = field(default_factory=Ledger)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def sequence(self) -> int:
        return self.ledger.sequence

    async def follow(self, log: LogReader) -> None:
        """Runs until cancelled. Raises VerificationFailed when the log breaks an invariant."""
        async for batch in log.read(after=self.sequence, follow=True):
            for message in batch.messages:
                self._take(decode(message))
            async with self._changed:
                self._changed.notify_all()

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Raises TimeoutError naming `what` when the condition stays false.

        Cancelled, only the waiting ends.
        """
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError as error:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}; the log is at {self.sequence}") from error

    def _take(self, record: Recorded) -> None:
        self.ledger.take(record)
        match record.event:
            case types.ClusterDefined():
                self.plan = record.event
            case types.NodeJoined() as event:
                self.live[event.node] = Member(
                    event.node, event.uid, event.kind, event.announced, event.vtep_mac
                )
            case types.NodeUnderlayChanged(node=node, announced=announced):
                self._replace(node, underlay=announced)
            case types.RangeAllocated() as event:
                cidr = str(IPv4Network(event.cidr))
                self._replace(
                    event.node,
                    range=cidr,
                    index=event.index,
                    cursor_after=event.cursor_after,
                    epoch=record.sequence,
                )
            case types.NodeNatChanged() as event:
                if event.behind:
                    self.behind_nat[event.node] = event.seen_as
                else:
                    self.behind_nat.pop(event.node, None)
            case types.NodeLeft(node=node, uid=uid) | types.NodeFenced(node=node, uid=uid):
                if node in self.live and self.live[node].uid == uid:
                    del self.live[node]
                    self.behind_nat.pop(node, None)
                    self.left_at[node] = record.recorded_at.timestamp()
            case _:
                pass

    def _replace(self, node: str, **values: str | int) -> None:
        if node in self.live:
            self.live[node] = dataclasses.replace(self.live[node], **values)  # type: ignore[arg-type]
