"""The log in a NATS JetStream stream: one stream per cluster, the only truth (production).

The parts: :mod:`events.jetstream.stream` (settings), :mod:`events.jetstream.append`,
:mod:`events.jetstream.read`, :mod:`events.jetstream.api` (requests and error codes).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Self

from nats.aio.client import Client

from events import subjects
from events.chain import Head
from events.codec import OutgoingMessage, StoredMessage
from events.jetstream.api import DEFAULT_PREFIX, prefix_of
from events.jetstream.append import Ahead, append, send_ahead
from events.jetstream.direct import DirectReader
from events.jetstream.freshness import vouched_end
from events.jetstream.read import PullReader, log_head
from events.jetstream.stream import ensure_stream, event_stream_settings, status_stream_settings
from events.log import ReadBatch
from events.parking import parking_subjects

MISSING_S = 3.0
"""How long the servers of a cluster have to say that there is no log before one is made."""


class JetStreamLog:
    """An EventLog over an open connection, which it does not own.

    ``prefix`` is the JetStream API's subject prefix: another one reaches another domain
    (``$JS.hub.API``) or an imported API. ``patience_s`` bounds how long a read that does not follow
    waits for a log that cannot be reached, ``lag_s`` how long an append that was decided further up waits
    for a log that is behind it (a server that was cut off steps down after about 10 s).
    Cancelled, its coroutines leave nothing behind, or say what.
    """

    def __init__(
        self,
        client: Client,
        cluster: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        batch_size: int = 1000,
        patience_s: float = 10.0,
        lag_s: float = 12.0,
    ) -> None:
        self._client = client
        self._cluster = subjects.check_label(cluster, "cluster")
        self._given_prefix, self._prefix = prefix, prefix_of(client, prefix)
        self._patience_s = patience_s
        self._lag_s = lag_s
        self._ahead: Ahead | None = None
        self._reader = PullReader(client, self._prefix, cluster, batch_size=batch_size, patience_s=patience_s)
        # Credentials that may not make consumers (an auditor's, an operator's) read without one.
        self._may_consume = self._prefix == prefix

    @classmethod
    async def open(
        cls,
        client: Client,
        cluster: str,
        *,
        create: bool = False,
        replicas: int | None = None,
        prefix: str = DEFAULT_PREFIX,
        batch_size: int = 1000,
        patience_s: float = 10.0,
        lag_s: float = 12.0,
        remembered: int = 0,
    ) -> Self:
        """Open the cluster's log.

        With ``create`` (controllers) the event and the status stream are made when missing and
        their settings checked otherwise; ``replicas`` is 1 or 3 (None: as it is, 1 when new). A log
        that is known to hold events up to ``remembered`` is not made when missing.
        Without it (readers) the log only has to exist.

        Raises Refused(log_settings_differ), Unavailable(log_missing, log_unavailable or bus_unreachable),
        BadRequest for a cluster name that is no DNS-1123 label. Cancelled with ``create``, the streams may have
        been made.
        """
        self = cls(client, cluster, prefix=prefix, batch_size=batch_size, patience_s=patience_s, lag_s=lag_s)
        if create:
            events, status = event_stream_settings(cluster), status_stream_settings(cluster)
            certain_s = MISSING_S if _clustered(client) else 0.0
            await ensure_stream(
                client, events, replicas=replicas, prefix=prefix, remembered=remembered, certain_s=certain_s
            )
            await ensure_stream(client, status, replicas=replicas, prefix=prefix)
        else:
            await self.head()
        return self

    @property
    def cluster(self) -> str:
        return self._cluster

    @property
    def client(self) -> Client:
        """The connection that the log uses."""
        return self._client

    async def head(self) -> Head:
        """The log's end, asked of its leader."""
        return await log_head(self._client, self._cluster, prefix=self._prefix, patience_s=self._patience_s)

    async def vouched_end(self, *, timeout_s: float = 3.0) -> int:
        return await vouched_end(
            self._client, self._prefix, subjects.stream(self._cluster), timeout_s=timeout_s
        )

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        """As :meth:`events.log.EventLog.append` says. Cancelled, the messages may be stored."""
        ahead, self._ahead = self._ahead, None
        return await append(
            self._client,
            self._prefix,
            self._cluster,
            messages,
            expected=expected,
            timeout_s=timeout_s,
            lag_s=self._lag_s,
            ahead=ahead,
        )

    async def send_ahead(self, messages: Sequence[OutgoingMessage], *, expected: int) -> None:
        """As :meth:`events.log.SendsAhead.send_ahead` says. Cancelled, some of the messages may be sent."""
        self._ahead = await send_ahead(self._client, messages, expected=expected, before=self._ahead)

    async def parkings(self) -> list[StoredMessage]:
        """See :class:`events.parking.Indexed`."""
        reader = DirectReader(self._client, subjects.stream(self._cluster), prefix=self._given_prefix)
        try:
            return await reader.every(parking_subjects(self._cluster))
        finally:
            await reader.close()

    def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        if not self._may_consume:
            from events.jetstream.live import LiveReader

            reader = LiveReader(self._client, self._cluster, prefix=self._prefix, patience_s=self._patience_s)
            return reader.read(after=after, until=until, follow=follow)
        return self._reader.read(after, until, follow=follow)


def _clustered(client: Client) -> bool:
    """Whether the server that the connection is to is one of several."""
    return bool(client._server_info.get("cluster"))  # noqa: SLF001  the server's greeting has no public way
