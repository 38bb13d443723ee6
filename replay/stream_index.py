"""Finding in the live stream by the server's own index: one sequence, or one subject's events.

Reading only; works with credentials that may use ``DIRECT.GET`` alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import msgspec

from events import subjects
from events.codec import StoredMessage
from events.errors import VerificationFailed
from events.jetstream.direct import DirectReader
from events.jetstream.log import JetStreamLog
from events.status import AgentStatus
from events.types import EntryAdded, PathLost
from replay.archive.postings import ENTRIES, keys_of
from replay.history import History
from replay.log_index import ScanIndex

_status = msgspec.json.Decoder(AgentStatus)


async def stream_history(log: JetStreamLog) -> History:
    """The history in a live stream, up to its end as it is now. Raises Unavailable.

    Cancelled, it leaves nothing behind.
    """
    return await History.open(log, StreamIndex(log))


class StreamIndex(ScanIndex):
    """A :class:`replay.log_index.LogIndex` by direct gets on one cluster's event and status streams.

    Cancelled, its coroutines leave nothing behind.
    """

    def __init__(self, log: JetStreamLog) -> None:
        super().__init__(log, f"stream {subjects.stream(log.cluster)}")
        self._cluster = log.cluster
        self._events = DirectReader(log.client, subjects.stream(log.cluster))
        self._status = DirectReader(log.client, subjects.status_stream(log.cluster))

    async def at(self, sequence: int) -> StoredMessage | None:
        answer = await self._events.after(sequence - 1, count=1)
        found = answer.messages
        return found[0] if found and found[0].sequence == sequence else None

    async def about(
        self, kind: str, name: str, *, after: int, until: int, newest_first: bool
    ) -> AsyncIterator[StoredMessage]:
        if kind not in ("node", "range", "clb", "entry", "entries", "cluster"):
            async for message in super().about(kind, name, after=after, until=until, newest_first=newest_first):
                yield message
            return
        found = await self._matching(kind, name, after, until)
        for message in reversed(found) if newest_first else found:
            yield message

    async def last_of_node(self, name: str, end: int) -> StoredMessage | None:
        found = await self._events.last(subjects.event(self._cluster, "node", name, "*"))
        return None if found is None or found.sequence > end else found

    async def names(self, kind: str, end: int) -> Collection[str]:
        try:
            return await super().names(kind, end)
        except VerificationFailed:  # a hole: a suggestion is not worth an error
            return ()

    async def reports(self) -> list[AgentStatus]:
        found = []
        for message in await self._status.every(subjects.status_wildcard(self._cluster)):
            try:
                found.append(_status.decode(message.body))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # a newer agent's report
                continue
        return found

    async def _matching(self, kind: str, name: str, after: int, stop: int) -> list[StoredMessage]:
        if (kind, name) == ENTRIES:
            kind, name = EntryAdded.aggregate, "*"
        found = await self._on(subjects.event(self._cluster, kind, name, ">"), after, stop)
        if kind == "node":
            found |= await self._on(subjects.event(self._cluster, "allocation", name, ">"), after, stop)
            # A node's ranges are given and taken in the transactions of its own joining and leaving.
            for message in list(found.values()):
                first = message.sequence - int(message.headers.get("ce-txindex", "0"))
                for sequence in range(first, first + int(message.headers.get("ce-txcount", "1"))):
                    if sequence not in found and after < sequence <= stop:
                        sibling = await self.at(sequence)
                        if sibling is not None and f"node/{name}" in keys_of(sibling):
                            found[sequence] = sibling
            for sequence, message in (
                await self._on(subjects.event(self._cluster, PathLost.aggregate, "*", "*"), after, stop)
            ).items():
                if f"node/{name}" in keys_of(message):
                    found[sequence] = message
        return [found[sequence] for sequence in sorted(found)]

    async def _on(self, subject: str, after: int, stop: int) -> dict[int, StoredMessage]:
        messages = await self._events.every(subject, after=after)
        return {message.sequence: message for message in messages if message.sequence <= stop}
