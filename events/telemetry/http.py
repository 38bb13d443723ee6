"""A small HTTP endpoint for scraping: ``/metrics`` and ``/healthz``, nothing else.

For roles that have no web framework (the node agent). It runs on the role's own event loop, so that
the numbers are read between two steps of its work and never beside them. It must never serve more
than these two paths, take a request body, or listen beyond loopback unless it is told to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from events.errors import Unavailable, Usage

log = logging.getLogger("isthmus.metrics")

HEAD_LIMIT_BYTES = 8192
CONNECTIONS_MAX = 16
DEADLINE_S = 5.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serve_metrics(
    render: Callable[[], bytes],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    healthy: Callable[[], str] = lambda: "",
) -> AsyncIterator[int]:
    """Serve until the block is left; yields the port (chosen by the system for 0).

    ``healthy`` returns an empty text, or the reason why ``/healthz`` answers 503. Raises
    Unavailable(prerequisite_missing) when the address cannot be bound. A cancellation inside of the block ends
    it, too.
    """
    busy = asyncio.Semaphore(CONNECTIONS_MAX)

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if busy.locked():
                return
            async with busy, asyncio.timeout(DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head.split(b"\r\n", 1)[0], render, healthy))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the scraper went away or is not one; the next scrape tells
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(on_connection, host, port, limit=HEAD_LIMIT_BYTES)
    except OSError as error:
        raise Unavailable(
            "prerequisite_missing", f"cannot serve metrics on {host}:{port}: {error.strerror or error}"
        ) from error
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def serve_where(
    render: Callable[[], bytes], where: str, *, healthy: Callable[[], str] = lambda: ""
) -> AsyncIterator[int]:
    """Serve at ``HOST:PORT``; yields the port, 0 for ``off`` or when the address is taken.

    ``healthy`` as for `serve_metrics`.

    Metrics are worth a warning, not a stop. Raises Usage(usage) for anything else. A cancellation inside of the
    block ends it, too.
    """
    if where == "off":
        yield 0
        return
    host, colon, number = where.rpartition(":")
    if not colon or not number.isdigit() or int(number) > 65535:
        raise Usage("usage", f"--metrics {where!r} is not HOST:PORT or off")
    async with AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(
                serve_metrics(render, host=host.strip("[]") or "127.0.0.1", port=int(number), healthy=healthy)
            )
        except Unavailable as error:
            log.warning("%s; going on without", error.message)
            port = 0
        yield port


def _answer(request_line: bytes, render: Callable[[], bytes], healthy: Callable[[], str]) -> bytes:
    method, _, rest = request_line.partition(b" ")
    path = rest.split(b" ")[0].split(b"?")[0]
    if method not in {b"GET", b"HEAD"}:
        return _response("405 Method Not Allowed", b"only GET\n", method)
    if path == b"/metrics":
        return _response("200 OK", render(), method)
    if path == b"/healthz":
        reason = healthy()
        status = "503 Service Unavailable" if reason else "200 OK"
        return _response(status, (reason or "ok").encode() + b"\n", method)
    return _response("404 Not Found", b"/metrics or /healthz\n", method)


def _response(status: str, body: bytes, method: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else body)
