"""Connecting to NATS: one place for the options that every connection of ours needs.

nats-py's defaults give up reconnecting after a minute and print tracebacks; a permission violation
reaches only the error callback, as text. All of that is settled here.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable

import msgspec
import nats
from nats.aio.client import Client

from events.errors import Unavailable

DEFAULT_BUS = "nats://127.0.0.1:4222"

log = logging.getLogger("isthmus.bus")


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


async def connect(
    options: BusOptions,
    *,
    name: str,
    on_disconnect: Callable[[], Awaitable[None]] | None = None,
    on_reconnect: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """Connect, and from then on reconnect for ever (0.2 s apart, jittered by the client).

    Raises Unavailable(bus_unreachable) when no server answers within ``connect_timeout_s`` now.
    """
    tls: ssl.SSLContext | None = None
    if options.ca or options.certificate:
        tls = ssl.create_default_context(cafile=options.ca or None)
        if options.certificate:
            tls.load_cert_chain(options.certificate, options.key or None)

    async def on_error(error: Exception) -> None:
        log.warning("bus: %s", str(error) or type(error).__name__)

    async def on_lost() -> None:
        log.info("bus: disconnected")
        if on_disconnect is not None:
            await on_disconnect()

    async def on_again() -> None:
        log.info("bus: connected again")
        if on_reconnect is not None:
            await on_reconnect()

    try:
        # The first connection is one try per server: a person waits for it. nats-py counts
        # reconnection tries with the same number, so it is raised once connected.
        client = await nats.connect(
            servers=list(options.servers),
            name=name,
            error_cb=on_error,
            disconnected_cb=on_lost,
            reconnected_cb=on_again,
            connect_timeout=options.connect_timeout_s,
            max_reconnect_attempts=1,
            reconnect_time_wait=0.2,
            allow_reconnect=True,
            user_credentials=options.credentials or None,
            user=options.user or None,
            password=options.password or None,
            tls=tls,
            inbox_prefix=options.inbox_prefix,
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=8 * 1024 * 1024,
        )
    except (
        Exception
    ) as error:  # nats-py raises OSError, NoServersError, TimeoutError, ssl errors and bare Exception
        raise Unavailable(
            "bus_unreachable",
            f"no NATS server answers at {', '.join(options.servers)} ({str(error) or type(error).__name__}): "
            f"check the address, that the server runs, and the credentials",
            servers=list(options.servers),
        ) from error
    client.options["max_reconnect_attempts"] = -1
    return client
