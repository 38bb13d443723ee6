"""Looking things up in the live stream by the server's own index: one sequence, or one subject's events.

Reading only; works with credentials that may use ``DIRECT.GET`` alone.
"""

from __future__ import annotations

import msgspec

from events import subjects
from events.codec import StoredMessage
from events.jetstream.direct import DirectReader
from events.jetstream.log import JetStreamLog
from events.status import AgentStatus

_status = msgspec.json.Decoder(AgentStatus)


class LiveLookup:
    """Direct gets on one cluster's event and status streams."""

    def __init__(self, log: JetStreamLog) -> None:
        self._cluster = log.cluster
        self._events = DirectReader(log.client, subjects.stream(log.cluster))
        self._status = DirectReader(log.client, subjects.status_stream(log.cluster))

    async def at(self, sequence: int) -> StoredMessage | None:
        """The event stored at ``sequence``; None when the stream has none. Raises Unavailable."""
        answer = await self._events.after(sequence - 1, subjects.events_wildcard(self._cluster), count=1)
        found = answer.messages
        return found[0] if found and found[0].sequence == sequence else None

    async def matching(self, subject: str, *, after: int = 0) -> list[StoredMessage]:
        """All events on ``subject`` (wildcards allowed) after a sequence, in order. Raises Unavailable."""
        return await self._events.every(subject, after=after)

    async def last(self, subject: str) -> StoredMessage | None:
        """The newest event on ``subject`` (wildcards allowed). Raises Unavailable."""
        return await self._events.last(subject)

    async def statuses(self) -> list[AgentStatus]:
        """The last report of every agent. Raises Unavailable."""
        found = []
        for message in await self._status.every(subjects.status_wildcard(self._cluster)):
            try:
                found.append(_status.decode(message.body))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # a newer agent's report
                continue
        return found
