"""What one caller may take of the server: connections, requests at once, time, paths, guesses of the token.

Health and metrics have budgets of their own: whoever fills the others, monitoring still sees the controller.
Connections that have not finished asking are closed, the oldest first, when there are too many or after
:data:`REQUEST_S`; a request is cut off after :data:`ANSWER_S`, but for the endless stream.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from controlplane.console.schemas import ErrorBody

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

WAITING_MAX = 256
"""Connections that have not finished a request: new ones, half-open ones, idle ones."""
REQUEST_S = 10.0
"""In which a request's head must arrive, and then its body."""
ANSWER_S = 60.0
AT_ONCE = {"/healthz": 32, "/metrics": 8, "/api/v1/login": 16}
"""Path → requests at once; all others share :data:`OTHERS_AT_ONCE`."""
OTHERS_AT_ONCE = 192
ENDLESS = frozenset({"/api/v1/live", "/api/v1/live/"})
PATH_BYTES, SEGMENT_BYTES = 2048, 255
"""The longest path and the longest name in it (a node's has 253)."""
ADDRESSES_MAX = 1024


class Attempts:
    """Failures by address: ``limit`` in ``window_s`` seconds, then none until the window is over."""

    def __init__(
        self, limit: int, window_s: float = 60.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        self._failures: dict[str, tuple[int, float]] = {}  # address → how many, and when that is forgotten

    def wait_s(self, address: str) -> float:
        """How long this address must wait; 0 when it may try."""
        count, ends = self._failures.get(_caller(address), (0, 0.0))
        return max(0.0, ends - self._clock()) if count >= self._limit else 0.0

    def failed(self, address: str) -> None:
        """Count one."""
        key, now = _caller(address), self._clock()
        count, ends = self._failures.pop(key, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + self._window_s
        while len(self._failures) >= ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]
        self._failures[key] = (count + 1, ends)


def _caller(address: str) -> str:
    """An IPv6 site is one caller: it has more addresses than anybody can count."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


class RequestLimits:
    """The application behind its limits. An ASGI application itself."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._running: dict[str, int] = dict.fromkeys((*AT_ONCE, ""), 0)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 404, 408 or 503. Cancellation ends the answer where it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        refusal = _bad_path(path)
        kind = path if path in AT_ONCE else ""
        if refusal:
            await _refuse(send, *refusal)
        elif self._running[kind] >= AT_ONCE.get(kind, OTHERS_AT_ONCE):
            await _refuse(send, 503, "overloaded", "too many requests at once; repeat it later")
        else:
            self._running[kind] += 1
            try:
                await self._answer(scope, receive, send, endless=path in ENDLESS)
            finally:
                self._running[kind] -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send, *, endless: bool) -> None:
        begun = False
        whole = False

        async def receiving() -> Message:
            nonlocal whole
            if whole:  # what follows the body is only the news that the caller has gone
                return await receive()
            async with asyncio.timeout(REQUEST_S):
                message = await receive()
            whole = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(None if endless else ANSWER_S):
                await self._app(scope, receiving, sending)
        except TimeoutError:
            if not begun:
                await _refuse(send, 408, "bad_request", f"the request was not complete after {REQUEST_S:g} s")


def _bad_path(path: str) -> tuple[int, str, str] | None:
    if not path.isprintable():
        return 404, "not_found", "there is no path with characters that cannot be printed"
    if len(path.encode(errors="replace")) > PATH_BYTES:
        return 404, "not_found", f"there is no path of more than {PATH_BYTES:,} bytes"
    if any(len(part.encode(errors="replace")) > SEGMENT_BYTES for part in path.split("/")):
        return 404, "not_found", f"there is no path with a name of more than {SEGMENT_BYTES} bytes"
    return None


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = msgspec.json.encode(ErrorBody(code=code, message=message))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *([(b"retry-after", b"5")] if status == 503 else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def connection_class() -> type[H11Protocol]:
    """uvicorn's HTTP protocol for one server, whose connections that wait for a request are limited."""
    waiting: dict[H11Protocol, asyncio.TimerHandle] = {}  # the longest wait first

    class Connection(H11Protocol):
        """One connection."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(waiting) >= WAITING_MAX:
                next(iter(waiting)).transport.abort()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._asked()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            cycle: RequestResponseCycle | None = self.cycle  # None before the first request
            if cycle is not None and not cycle.response_complete:
                self._asked()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and self.cycle.response_complete:
                self._wait()

        def _wait(self) -> None:
            self._asked()
            waiting[self] = self.loop.call_later(REQUEST_S, self._late)

        def _asked(self) -> None:
            timer = waiting.pop(self, None)
            if timer is not None:
                timer.cancel()

        def _late(self) -> None:
            waiting.pop(self, None)
            self.transport.abort()

    return Connection
