"""Connecting to NATS: one place for the options that every connection of ours needs.

nats-py's defaults give up reconnecting after a minute and print tracebacks; a permission violation
reaches only the error callback, as text; and a server that refuses or expires credentials makes it
close for ever. All of that is settled here: credentials are read anew at each connection, and a
refused connection goes on trying, slower and slower, until the file holds something better.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import re
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events.bus.access import creds
from events.bus.nats_fastpath import FastClient
from events.errors import IsthmusError, Refused, Unavailable

DEFAULT_BUS = "nats://127.0.0.1:4222"

log = logging.getLogger("isthmus.bus")

# nats-py's protocol says so at the end of each TLS connection; it means nothing to anybody.
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in str(record.msg))


class BusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the bus. ``credentials`` is a NATS ``.creds`` file; ``ca`` a PEM file for TLS."""

    servers: tuple[str, ...] = (DEFAULT_BUS,)
    credentials: str = ""
    user: str = ""
    password: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    inbox_prefix: str = "_INBOX"
    connect_timeout_s: float = 3.0

    @property
    def api_prefix(self) -> str:
        """Where these credentials find JetStream's API. Raises Refused for unreadable credentials."""
        return creds.load(self.credentials).api_prefix if self.credentials else "$JS.API"


_REFUSALS = ("authentication", "authorization", "account", "maximum connections", "revoked", "during the login")
_DENIED = re.compile(r"permissions violation for publish to \"([^\"]+)\"", re.IGNORECASE)
_DENIED_MAX = 32
_CLOSE_S = 0.5
_PAUSE_FIRST_S, _PAUSE_LONGEST_S, _PAUSE_REFUSED_S = 0.1, 2.0, 15.0


def _asked_to_end() -> int:
    """How often this task was cancelled and has not taken it back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class _Patient(FastClient):
    """A client that a refusal or an expiry sends into reconnection instead of closing it for good."""

    refused = False
    denied: deque[str]
    """Subjects that the server let this client not publish to, lower case, the latest last."""
    public_key = ""
    api_prefix = "$JS.API"
    """Where these credentials find JetStream's API; :func:`events.jetstream.api.prefix_of` asks."""

    def _connect_command(self) -> bytes:
        """Name the public key beside the JWT: a server with a plain configuration knows only that."""
        command = super()._connect_command()
        if not self.public_key:
            return command
        verb, _, options = command.partition(b" ")
        named = {**msgspec.json.decode(options), "nkey": self.public_key}
        return b"%b %b\r\n" % (verb, msgspec.json.encode(named))

    async def _process_connect_init(self) -> None:
        """Log in. nats-py takes whatever line follows the login for consent: a PING, or a hang-up."""
        transport: Any = self._transport
        readline = transport.readline

        async def reply() -> bytes:
            line: bytes = await readline()
            while line.startswith(b"PING"):  # the server's first one comes while it looks an account up
                transport.write(b"PONG\r\n")
                line = await readline()
            return line

        close = transport.wait_closed

        async def closed() -> None:
            try:
                await asyncio.wait_for(close(), _CLOSE_S)
            except TimeoutError:  # after a failed handshake or a hang-up it would wait for ever
                transport._io_writer.transport.abort()  # noqa: SLF001  nats-py has no way to

        transport.wait_closed = closed
        transport.readline = reply
        try:
            await super()._process_connect_init()
            if not self.is_connected:
                raise NatsError("nats: the server hung up during the login")  # noqa: TRY301  handled below
        except BaseException as error:
            transport._io_writer.transport.abort()  # noqa: SLF001  nats-py forgets it
            if isinstance(error, IsthmusError):  # the file is gone or damaged now: the next try reads it again
                raise NatsError(f"nats: {error.message}") from error
            raise
        finally:
            transport.readline = readline

    # A cancellation that arrives inside these two is lost: nats-py's flushing swallows it, and so does
    # ``asyncio.wait_for`` up to Python 3.11 when its result arrives in the same turn (CPython issue 86296).
    # A task that goes on for ever would never end.

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        asked = _asked_to_end()
        result = await super()._flush_pending(force_flush)
        if _asked_to_end() > asked:
            raise asyncio.CancelledError
        return result

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109  nats-py's own signature
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        asked = _asked_to_end()
        message = await super().request(subject, payload, timeout, old_style, headers)
        if _asked_to_end() > asked:
            raise asyncio.CancelledError
        return message

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("' ").lower()
        if self.is_connecting or not text or not any(word in text for word in _REFUSALS):
            await super()._process_err(err_msg)
            return
        self.refused = True
        await self._error_cb(NatsError(f"nats: the server ended the session: {text}"))
        await self._process_op_err(NatsError(f"nats: {text}"))

    def _next(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The least tried server, after a jittered pause that grows with its failures."""
        server = min(servers, key=lambda each: each.reconnects)
        longest_s = _PAUSE_REFUSED_S if self.refused else _PAUSE_LONGEST_S
        pause_s = min(longest_s, _PAUSE_FIRST_S * 2 ** min(10, server.reconnects))
        return server, pause_s * random.uniform(0.5, 1.0)  # noqa: S311  jitter, not a secret


def _identity(client: _Patient, options: BusOptions) -> dict[str, Any]:
    """How the client proves who it is, from a file that is read again at each connection."""
    if not options.credentials:
        return {"user": options.user or None, "password": options.password or None}
    creds.load(options.credentials)  # refuses an unreadable file now, with a reason

    def sign(nonce: str) -> bytes:
        key = creds.load(options.credentials).key
        client.public_key = key.public
        return base64.b64encode(key.sign(nonce.encode()))

    return {
        "signature_cb": sign,
        "user_jwt_cb": lambda: bytearray(creds.load(options.credentials).jwt.encode()),
    }


async def connect(
    options: BusOptions,
    *,
    name: str,
    on_disconnect: Callable[[], Awaitable[None]] | None = None,
    on_reconnect: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """Connect, and from then on reconnect for ever (0.2 s apart, jittered by the client).

    Raises Unavailable(bus_unreachable) when no server answers within ``connect_timeout_s`` each now,
    Refused(forbidden) when one answers and refuses the credentials, and
    Refused(credentials_missing or credentials_invalid) for an unreadable file.
    """
    client = _Patient()
    client.denied = deque(maxlen=_DENIED_MAX)
    identity = _identity(client, options)
    client.api_prefix = options.api_prefix
    tls: ssl.SSLContext | None = None
    if options.ca or options.certificate:
        tls = ssl.create_default_context(cafile=options.ca or None)
        if options.certificate:
            tls.load_cert_chain(options.certificate, options.key or None)

    said: list[str] = []
    connected = False

    async def on_error(error: Exception) -> None:
        if not client.is_connected and len(said) < 8:
            said.append(str(error))
        denied = _DENIED.search(str(error))
        if denied:
            client.denied.append(denied[1])
        # What the first connection meets is in the error that its caller gets.
        log.log(logging.WARNING if connected else logging.DEBUG, "bus: %s", str(error) or type(error).__name__)

    async def on_lost() -> None:
        # A lost first try is told by the command itself; only a connection that stood is news.
        log.log(logging.INFO if connected else logging.DEBUG, "bus: disconnected")
        if on_disconnect is not None:
            await on_disconnect()

    async def on_again() -> None:
        log.info("bus: connected again")
        client.refused = False
        if on_reconnect is not None:
            await on_reconnect()

    try:
        # The first connection is one try per server: a person waits for it. nats-py counts
        # reconnection tries with the same number, so it is raised once connected.
        async with asyncio.timeout(options.connect_timeout_s * (1 + len(options.servers))):
            await client.connect(
                servers=list(options.servers),
                name=name,
                error_cb=on_error,
                disconnected_cb=on_lost,
                reconnected_cb=on_again,
                connect_timeout=options.connect_timeout_s,  # type: ignore[arg-type]  # fractions work
                max_reconnect_attempts=1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]  # fractions work
                allow_reconnect=True,
                reconnect_to_server_handler=client._next,  # noqa: SLF001  our own subclass
                tls=tls,
                inbox_prefix=options.inbox_prefix,
                **identity,
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=8 * 1024 * 1024,
            )
        connected = True
    except (
        Exception
    ) as error:  # nats-py raises OSError, NoServersError, TimeoutError, ssl errors and bare Exception
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(), _CLOSE_S)
        refusal = next((text for text in said if any(word in text.lower() for word in _REFUSALS)), "")
        if refusal:
            raise Refused("forbidden", _refused(options, refusal), servers=list(options.servers)) from error
        raise Unavailable(
            "bus_unreachable",
            f"no NATS server answers at {', '.join(options.servers)} ({_why(error, said)}): "
            f"check the address, that the server runs, and the credentials",
            servers=list(options.servers),
        ) from error
    said.clear()
    client.options["max_reconnect_attempts"] = -1
    return client


def was_denied(client: Client, subject: str) -> bool:
    """Whether the server has lately refused this client's publishing to ``subject`` (it does not answer so)."""
    return subject.lower() in getattr(client, "denied", ())


def _why(error: BaseException, said: list[str]) -> str:
    """The last thing that went wrong, which tells more than nats-py's final word."""
    return next((text for text in reversed(said) if text), str(error) or type(error).__name__)


def _refused(options: BusOptions, said: str) -> str:
    """Why, as far as this side can tell: the server tells a stranger nothing more."""
    if not options.credentials:
        return (
            f"the bus at {options.servers[0]} demands credentials ({said}): give --creds FILE or ISTHMUS_CREDS"
        )
    found = creds.load(options.credentials)
    if found.expires is not None and found.expires <= datetime.now(UTC):
        return (
            f"the bus refuses {options.credentials}: it expired at {found.expires:%Y-%m-%d %H:%M} UTC; "
            f"renew it with `isthmus credentials rotate`"
        )
    return (
        f"the bus at {options.servers[0]} refuses {options.credentials} ({said}): "
        f"it was revoked, or made for another bus"
    )
