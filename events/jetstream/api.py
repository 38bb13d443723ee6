"""JetStream's own API as JSON requests, and the shape of its errors.

nats-py's typed calls drop settings that they do not know and map errors by HTTP status; both
matter here, so that requests are made as they are specified (ADR-1, errors.json of the server).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from events.errors import Unavailable

DEFAULT_PREFIX = "$JS.API"


def prefix_of(client: Client, prefix: str) -> str:
    """The API prefix to use: what the caller names, else where the client's credentials have it.

    Credentials of nodes, operators and auditors find the read-only part of the API under a name of
    their own, because their accounts hold no streams (:mod:`events.bus.connection`).
    """
    return str(getattr(client, "api_prefix", prefix)) if prefix == DEFAULT_PREFIX else prefix


# err_code of nats-server's server/errors.json
STREAM_NOT_FOUND = 10059
NO_MESSAGE = 10037
WRONG_LAST_SEQUENCE = 10071
WRONG_LAST_SEQUENCE_IN_FLIGHT = 10164
DUPLICATE_IN_BATCH = 10201
PAYLOAD_TOO_LARGE = 10054

PING_S = 2.0

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class ApiError(Exception):
    """An answer with an error in it; never leaves this package."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed in a moment (no leader, no quorum, too busy)."""
        return self.code in {503, 429, 408} or self.err_code in {10005, 10074, 10158, 10175, 10176}


def error_in(answer: Mapping[str, Any]) -> ApiError | None:
    """The error that an answer carries, if any."""
    error = answer.get("error")
    if error is None:
        return None
    return ApiError(int(error.get("code", 0)), int(error.get("err_code", 0)), str(error.get("description", "")))


async def call(
    client: Client, subject: str, body: Mapping[str, Any] | None = None, *, timeout_s: float
) -> dict[str, Any]:
    """One request. Raises ApiError, and Unavailable(log_unavailable) without an answer.

    Cancelled, the request may have taken effect.
    """
    if not client.is_connected:
        raise Unavailable("bus_unreachable", "the connection to the bus is down; it is being restored")
    try:
        message = await client.request(subject, _encode(body) if body else b"", timeout=timeout_s)
    except NoRespondersError:
        raise Unavailable(
            "log_unavailable", f"nobody answers {subject}: JetStream is off, has no leader, or is not permitted"
        ) from None
    except (NatsTimeoutError, TimeoutError):
        raise Unavailable(
            "log_unavailable",
            f"no answer to {subject} within {timeout_s:g} s: no quorum, an overloaded server, or no permission",
        ) from None
    except NatsError as error:
        raise Unavailable("bus_unreachable", f"the bus connection failed: {error}") from error
    answer: dict[str, Any] = _decode(message.data)
    refusal = error_in(answer)
    if refusal is not None:
        raise refusal
    return answer


async def ensure_alive(client: Client, *, timeout_s: float = PING_S) -> None:
    """After an unanswered request: leave a connection on which not even a ping is answered.

    The client's own pings find a silent server too (a pulled cable, a frozen machine), but take three times as
    long; meanwhile other servers may well be taking appends. Cancelled, the connection is as it was.
    """
    try:
        # Nobody listens there, which the server says at once. Not ``flush``: a pong for one that was
        # given up ends nats-py's read loop.
        await client.request(client.new_inbox(), timeout=timeout_s)
    except NoRespondersError:
        return
    except (NatsTimeoutError, TimeoutError):
        await client.force_reconnect()
    except NatsError:
        return


def parse_headers(raw: bytes) -> dict[str, str]:
    """A NATS header block (``NATS/1.0`` and lines) as a dictionary; the first of a repeated name wins."""
    headers: dict[str, str] = {}
    for line in raw.decode("utf-8", "replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name, value.strip())
    return headers


async def last_message(
    client: Client, prefix: str, stream: str, subject: str, *, timeout_s: float
) -> tuple[int, dict[str, str]] | None:
    """Sequence and headers of the last message on ``subject``, asked of the stream's leader; None if none.

    Raises ApiError and Unavailable as :func:`call` does. Cancelled, it leaves nothing behind.
    """
    return await _message(client, prefix, stream, {"last_by_subj": subject}, timeout_s)


async def message_at(
    client: Client, prefix: str, stream: str, sequence: int, *, timeout_s: float
) -> tuple[int, dict[str, str]] | None:
    """The same for the message at ``sequence``. Cancelled, it leaves nothing behind."""
    return await _message(client, prefix, stream, {"seq": sequence}, timeout_s)


async def _message(
    client: Client, prefix: str, stream: str, which: Mapping[str, Any], timeout_s: float
) -> tuple[int, dict[str, str]] | None:
    try:
        answer = await call(client, f"{prefix}.STREAM.MSG.GET.{stream}", which, timeout_s=timeout_s)
    except ApiError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    return int(message["seq"]), parse_headers(base64.b64decode(message.get("hdrs", "")))
