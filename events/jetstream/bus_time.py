"""What time it is on the bus: the clock by which everything that is stored gets its time.

A leader of a stream answers it, so that it is the clock that stamps this stream's messages now; after a
change of the stream's leader it is another machine's.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from nats.aio.client import Client

from events.errors import Unavailable
from events.jetstream.api import DEFAULT_PREFIX, ApiError, call, prefix_of
from events.jetstream.direct import recorded_ns


class BusTime(NamedTuple):
    """A server's time (Unix nanoseconds) at the monotonic moment ``at_s``, ``within_s`` seconds."""

    unix_ns: int
    at_s: float
    within_s: float


async def bus_time(client: Client, stream: str) -> BusTime:
    """Ask for the time of the server that leads ``stream``. Raises Unavailable.

    Cancellation leaves nothing behind.
    """
    asked_s = time.monotonic()
    subject = f"{prefix_of(client, DEFAULT_PREFIX)}.STREAM.INFO.{stream}"
    try:
        answer = await call(client, subject, timeout_s=2.0)
        unix_ns = recorded_ns(answer["ts"])
    except (ApiError, KeyError, TypeError, ValueError) as error:
        raise Unavailable("log_unavailable", f"stream {stream} does not tell its time: {error}") from error
    answered_s = time.monotonic()
    return BusTime(unix_ns, (asked_s + answered_s) / 2, (answered_s - asked_s) / 2)
