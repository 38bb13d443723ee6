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
import os
import re
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.errors import StaleConnectionError

from events.bus.access import creds
from events.bus.nats_fastpath import REFUSALS, ReconnectingClient
from events.errors import Refused, Unavailable
from events.input_files import check_regular

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


_DENIED = re.compile(r"permissions violation for publish to \"([^\"]+)\"", re.IGNORECASE)
_DENIED_MAX = 32
_ERRNO = re.compile(r"\[Errno (\d+)\]")
_TOLD_MAX = 8
"""Different refusals that are told while the bus is away."""
_CLOSE_S = 0.5


def _identity(client: ReconnectingClient, options: BusOptions) -> dict[str, Any]:
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


def _tls(options: BusOptions) -> ssl.SSLContext | None:
    """What the TLS files hold. Raises Refused(credentials_missing or credentials_invalid), naming them."""
    if not options.ca and not options.certificate:
        return None
    files = [file for file in (options.ca, options.certificate, options.key) if file]
    try:
        for file in files:
            check_regular(file)
        files = [file for file in files if file != options.ca]
        try:
            found = ssl.create_default_context(cafile=options.ca or None)
        except ssl.SSLError:
            files = [options.ca]
            raise
        if options.certificate:  # a key behind a passphrase is refused: nobody is there to be asked for it
            found.load_cert_chain(options.certificate, options.key or None, password=lambda: b"")
    except ssl.SSLError as error:
        raise Refused(
            "credentials_invalid",
            f"{' and '.join(files)}: no usable PEM file ({error.reason or error.strerror or error})",
        ) from error
    except (OSError, ValueError) as error:
        name, why = (error.filename, error.strerror) if isinstance(error, OSError) else (None, str(error))
        raise Refused("credentials_missing", f"{name or ' and '.join(files)} cannot be read: {why}") from error
    return found


async def connect(
    options: BusOptions,
    *,
    name: str,
    on_disconnect: Callable[[], Awaitable[None]] | None = None,
    on_reconnect: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """Connect, and from then on reconnect for ever (0.2 s apart, jittered by the client).

    Raises Unavailable(bus_unreachable) when no server answers within ``connect_timeout_s`` each now,
    Refused(forbidden) when one answers and refuses the credentials, and Refused(credentials_missing or
    credentials_invalid) for an unreadable file. Cancelled, no connection is left open.
    """
    client = ReconnectingClient()
    client.denied = deque(maxlen=_DENIED_MAX)
    client.tries = Counter()
    identity = _identity(client, options)
    client.api_prefix = options.api_prefix
    tls = _tls(options)

    said: list[str] = []
    connected = False
    told: set[str] = set()

    async def on_error(error: Exception) -> None:
        text = str(error) or type(error).__name__
        if not client.is_connected and len(said) < 8:
            said.append(str(error))
        denied = _DENIED.search(text)
        if denied:
            client.denied.append(denied[1])
        # What the first connection meets is in the error that its caller gets. Afterwards one line says that
        # it is lost, and one that it is there again; between them only why a server refuses us is news.
        refused = any(word in text.lower() for word in REFUSALS)
        away = not client.is_connected or isinstance(error, OSError | StaleConnectionError)
        news = connected and (not away or (refused and text not in told and len(told) < _TOLD_MAX))
        if refused and news:
            told.add(text)
        log.log(logging.WARNING if news else logging.DEBUG, "bus: %s", text)

    async def on_lost() -> None:
        # A lost first try is told by the command itself, and one that we close is none.
        news = connected and not client.is_closed
        log.log(logging.WARNING if news else logging.DEBUG, "bus: the connection is lost; trying again")
        if on_disconnect is not None:
            await on_disconnect()

    async def on_again() -> None:
        log.warning("bus: connected again")
        told.clear()
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
                reconnect_to_server_handler=client.next_server,
                tls=tls,
                inbox_prefix=options.inbox_prefix,
                **identity,
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=8 * 1024 * 1024,
            )
        connected, client.tries = True, None
    except (
        Exception
    ) as error:  # nats-py raises OSError, NoServersError, TimeoutError, ssl errors and bare Exception
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(), _CLOSE_S)
        refusal = next((text for text in said if any(word in text.lower() for word in REFUSALS)), "")
        if refusal:
            raise Refused("forbidden", _refused(options, refusal), servers=list(options.servers)) from error
        if options.credentials:
            creds.load(options.credentials)  # gone or damaged meanwhile: then that is why
        raise Unavailable(
            "bus_unreachable",
            f"no NATS server answers at {', '.join(options.servers)} ({_with_clock(_why(error, said))}): "
            "check the address (--bus, ISTHMUS_BUS), the server, the network and the credentials",
            servers=list(options.servers),
        ) from error
    said.clear()
    client.options["max_reconnect_attempts"] = -1
    return client


def _with_clock(why: str) -> str:
    """With this machine's time, where a certificate is refused for its own: often the clock is wrong."""
    if "not yet valid" in why or "certificate has expired" in why:
        return f"{why}; this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return why


def was_denied(client: Client, subject: str) -> bool:
    """Whether the server has lately refused this client's publishing to ``subject`` (it does not answer so)."""
    return subject.lower() in getattr(client, "denied", ())


def _why(error: BaseException, said: list[str]) -> str:
    """The last thing that went wrong, which tells more than nats-py's final word."""
    silence = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    found = next((text for text in reversed(said) if text), str(error) or silence)
    numbers = dict.fromkeys(map(int, _ERRNO.findall(found)))
    return ", ".join(os.strerror(number).lower() for number in numbers) or found


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
