"""Sending and reading agents' status over the bus.

An agent publishes without waiting for an acknowledgement: a lost status is followed by the next. A
reader first gets the last status of every node (kept by the status stream), then what arrives;
neither needs a consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events import subjects
from events.bus.retry import happened, raise_if_cancelled
from events.errors import BadRequest, Unavailable
from events.jetstream.bus_time import bus_time
from events.jetstream.direct import DirectReader
from events.printable import printable
from events.status import AgentStatus, checked

log = logging.getLogger("isthmus.status")

BACKLOG_MAX = 20_000
"""Nodes whose unread status is held at most; of each node only the newest."""

BODY_LIMIT_BYTES = 64 * 1024

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AgentStatus).decode


class Reported(NamedTuple):
    """A status, when the server stored it (Unix nanoseconds; 0: it has just come), and how long ago that was.

    The age is by the server's own clock: no two machines' clocks are compared.
    """

    status: AgentStatus
    arrived_ns: int
    age_s: float = 0.0


async def publish(client: Client, cluster: str, status: AgentStatus) -> bool:
    """Send a status; False when the connection is down (it is not kept: the next one tells more).

    Cancelled, the status may be on its way.
    """
    if not client.is_connected:
        return False
    try:
        await client.publish(subjects.status(cluster, status.node), _encode(status))
    except NatsError:
        return False
    return True


class StatusReader:
    """The last status of each node, and what follows. Unreadable ones are skipped, and said to ``on_refused``.

    ``on_refused`` is called with the node that the subject names and why; it returns at once.
    """

    def __init__(
        self,
        client: Client,
        cluster: str,
        *,
        on_refused: Callable[[str, str], None] | None = None,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._subject_prefix = subjects.status_wildcard(cluster).removesuffix("*")
        self._on_refused = on_refused or _logged
        self._direct = DirectReader(client, subjects.status_stream(cluster))

    async def all(self) -> list[Reported]:
        """The last status of every node that the stream holds, without ages. Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        found: dict[str, Reported] = {}
        for message in await self._direct.every(subjects.status_wildcard(self._cluster)):
            reported = self._read(message.subject, message.body, message.recorded_ns)
            if reported is not None:
                found[reported.status.node] = reported
        return list(found.values())

    async def follow(self) -> AsyncIterator[list[Reported]]:
        """First what the stream holds, then what arrives, in lists; coalesced per node when the reader is slow.

        Goes on over reconnections. Raises Unavailable when the connection is closed for good, or the stream
        cannot be read at the start. Cancelled, its subscription is taken back.
        """
        waiting: dict[str, bytes] = {}  # subject → the last there, undecoded: a flood is cheap
        arrived = asyncio.Event()

        async def on_message(message: Msg) -> None:
            if len(waiting) >= BACKLOG_MAX and message.subject not in waiting:
                return
            waiting[message.subject] = message.data
            arrived.set()

        try:
            subscription = await self._client.subscribe(subjects.status_wildcard(self._cluster), cb=on_message)
        except NatsError as error:
            raise Unavailable("bus_unreachable", f"the bus connection failed: {error}") from error
        try:
            kept = await self.all()
            now = await bus_time(self._client, subjects.status_stream(self._cluster))
            yield [each._replace(age_s=max(0.0, (now.unix_ns - each.arrived_ns) / 1e9)) for each in kept]
            while True:
                raise_if_cancelled()
                arrived.clear()
                if waiting:
                    taken, waiting = waiting, {}
                    read = (self._read(subject, body, 0) for subject, body in taken.items())
                    batch = [reported for reported in read if reported is not None]
                    if batch:
                        yield batch
                    else:
                        await asyncio.sleep(0)
                    continue
                if self._client.is_closed:
                    raise Unavailable("bus_unreachable", "the connection to the bus was closed")
                await happened(arrived, within_s=1.0)
        finally:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    def _read(self, subject: str, body: bytes, arrived_ns: int) -> Reported | None:
        node = subjects.node_from_token(subject.removeprefix(self._subject_prefix))
        if len(body) > BODY_LIMIT_BYTES:
            self._on_refused(node, f"its report has {len(body):,} bytes, the limit is {BODY_LIMIT_BYTES:,}")
            return None
        try:
            status = checked(_decode(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadRequest) as error:
            self._on_refused(node, f"its report is unreadable: {printable(str(error), 200)}")
            return None
        if status.node != node:
            # A node's credentials let it write its own subject only; what it writes there is its word.
            self._on_refused(node, f"it reports for node {status.node!r}")
            return None
        return Reported(status, arrived_ns)


def _logged(node: str, why: str) -> None:
    log.warning("node %s: %s; ignored", node, why)
