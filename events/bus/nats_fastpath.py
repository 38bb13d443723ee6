"""What nats-py cannot do, in one place: every use of its private parts, with the reason.

Each of these can go when nats-py does it:

* :class:`FastClient` reads and writes header blocks by :mod:`events.bus.headers`.
* :class:`FastParser` takes messages out of a read with one search and one split each; nats-py tries a regular
  expression for each kind of line and copies each message three times (no issue: a different trade).
* :func:`publish_all` sends many messages with one call, and :func:`inline` calls a callback that never waits
  where the message is read, instead of carrying it to another task, and one that is a plain function without
  an object and a coroutine for each (no issue: a different trade).
* :class:`ReconnectingClient` survives refused and expired credentials (nats.py issues 999 and 1019), a login
  that hangs, and cancellations that nats-py loses (nats.py issue 373).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, ConnectionDrainingError, MaxPayloadError
from nats.errors import Error as NatsError
from nats.protocol import command as protocol
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from events.bus.headers import FIRST_LINE, accepted, block, header_lines, parse_header_lines
from events.bus.retry import backoff_s
from events.errors import IsthmusError

_NOTHING: Mapping[str, str] = {}
_PLAIN, _HEADED = frozenset({4, 5}), frozenset({5, 6})
"""Words of a MSG and of an HMSG line; the more is with a reply subject."""

REFUSALS = ("authentication", "authorization", "account", "maximum connections", "revoked", "during the login")
_CLOSE_S = 0.5
_PAUSE_FIRST_S, _PAUSE_LONGEST_S, _PAUSE_REFUSED_S = 0.1, 2.0, 15.0


Take = Callable[[str, str, Mapping[str, str] | None, bytes], None]
"""Subject, reply subject, headers and body of a message."""


class Outgoing(NamedTuple):
    """A message to publish; ``lines`` are headers of other names as they go over the wire, behind the others.

    These lines are ASCII, each ``Name: Value`` and a line break, and valid: they are sent as they are.
    """

    subject: str
    body: bytes
    headers: Mapping[str, str] | None = None
    lines: str = ""

    def all_headers(self) -> dict[str, str] | None:
        """As nats-py takes them."""
        return {**(self.headers or _NOTHING), **parse_header_lines(self.lines.encode())} or None


class FastParser(Parser):
    """Takes messages out of what was read without a regular expression and copies for each.

    Everything else, and what looks unusual, goes to nats-py's own parser, line by line.
    """

    _resets = 0
    _wanted = 0
    """Bytes that the message which has begun takes, as far as that is known."""

    def reset(self) -> None:
        super().reset()
        self._resets += 1
        self._wanted = 0

    async def parse(self, data: bytes = b"") -> None:
        """As nats-py's. Cancelled, the rest of what was read is lost, as the connection then is."""
        if self.state != AWAITING_CONTROL_LINE:
            await super().parse(data)
            return
        if self.buf:
            if len(self.buf) + len(data) < self._wanted:
                self.buf += data
                return
            data = bytes(self.buf) + data
            self.buf.clear()
        resets, position, self._wanted = self._resets, 0, 0
        while (end := data.find(b"\r\n", position)) >= 0:
            words = data[position:end].split()
            count, kind = len(words), words[0] if words else b""
            heads = kind == b"HMSG"
            if not (
                (heads or kind == b"MSG")
                and count in (_HEADED if heads else _PLAIN)
                and words[2].isdigit()
                and words[-1].isdigit()
                and (not heads or words[-2].isdigit())
            ):
                await super().parse(data[position : end + 2])
                if resets != self._resets:
                    return
                position = end + 2
                if self.buf or self.state != AWAITING_CONTROL_LINE:
                    await super().parse(data[position:])
                    return
                continue
            start, size = end + 2, int(words[-1])
            stop = start + size
            if len(data) < stop + 2:
                self._wanted = stop + 2 - position
                break
            body = start + int(words[-2]) if heads else start
            reply = words[3] if count == (6 if heads else 5) else b""
            headers = data[start:body] if heads else None
            sid, subject, payload = int(words[2]), words[1], data[body:stop]
            if not self.nc._taken(sid, subject, reply, payload, headers):  # noqa: SLF001  the client's other half
                await self.nc._process_msg(sid, subject, reply, payload, headers)  # noqa: SLF001  as nats-py's does
                if resets != self._resets:
                    return
            position = stop + 2
        self.buf += data[position:]


class FastClient(Client):
    """A client that reads and writes header blocks as this module does."""

    _parse_header_lines = staticmethod(parse_header_lines)

    def __init__(self) -> None:
        super().__init__()
        self._ps = FastParser(self)
        self._inline: dict[int, Callable[[Msg], Awaitable[None]]] = {}
        self._takers: dict[int, Take] = {}

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        """Behind all that waits: nats-py's goes before it, and so its flush vouches for what is not sent."""
        if self._pending and self.is_connected and self._transport is not None:
            waiting, self._pending, self._pending_data_size = self._pending, [], 0
            self._transport.writelines(waiting)
        await super()._send_ping(future)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        lines = header_lines(headers) if headers and subject else None
        if lines is None:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            accepted(headers or ())
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(protocol.hpub_cmd(subject, reply, block(lines), payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def publish_all(self, messages: Iterable[Outgoing]) -> None:
        """See :func:`publish_all`. Subjects are ours, so that their spelling is not looked at.

        Raises ConnectionClosedError, ConnectionDrainingError, MaxPayloadError. Cancelled, some of the messages
        may be on their way.
        """
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        if not self.is_connected:  # nats-py bounds what waits for the connection
            for message in messages:
                await self.publish(message.subject, message.body, headers=message.all_headers())
            return
        parts: list[bytes] = []
        count = size = 0
        limit = self._max_payload
        for message in messages:
            subject, body, headers, lines = message
            length = len(body)
            if length > limit:
                raise MaxPayloadError
            if headers:
                rendered = header_lines(headers)
                if rendered is None:
                    await self._send_parts(parts, count, size)
                    count = size = 0
                    await self.publish(subject, body, headers=message.all_headers())
                    continue
                lines = f"{rendered}{lines}"
            if lines:
                whole = block(lines)
                parts += (
                    b"HPUB %b %d %d\r\n" % (subject.encode(), len(whole), len(whole) + length),
                    whole,
                    body,
                    b"\r\n",
                )
            else:
                parts += (f"PUB {subject} {length}\r\n".encode(), body, b"\r\n")
            count += 1
            size += length
        await self._send_parts(parts, count, size)

    async def _send_parts(self, parts: list[bytes], count: int, size: int) -> None:
        """Hand over what has gathered, as one piece."""
        if not parts:
            return
        whole = b"".join(parts)
        parts.clear()
        self.stats["out_msgs"] += count
        self.stats["out_bytes"] += size
        await self._send_command(whole)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _taken(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> bool:
        """Give the message to the plain function that takes those of its subscription; False: there is none."""
        take, subscription = self._takers.get(sid), self._subs.get(sid)
        if take is None or subscription is None or subscription._max_msgs:  # noqa: SLF001  what ends by itself, nats-py counts
            return False
        if headers and not headers.startswith(FIRST_LINE):
            return False
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        subscription._received += 1  # noqa: SLF001  as nats-py counts
        parsed = (parse_header_lines(headers[len(FIRST_LINE) :]) or None) if headers else None
        take(subject.decode(), reply.decode(), parsed, data)
        return True

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        callback = self._inline.get(sid)
        subscription = self._subs.get(sid)
        if callback is None or subscription is None or subscription.pending_msgs or subscription._max_msgs:  # noqa: SLF001  what ends by itself, nats-py counts
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]  # it may be None
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        subscription._received += 1  # noqa: SLF001  as nats-py counts
        if not headers:
            parsed = None
        elif headers.startswith(FIRST_LINE):
            parsed = parse_header_lines(headers[len(FIRST_LINE) :]) or None
        else:
            parsed = await self._process_headers(headers)
        try:
            await callback(
                Msg(self, subject.decode(), reply.decode(), data, parsed, _sid=sid)  # as nats-py makes it
            )
        except Exception as error:  # what nats-py does about a failing callback
            await self._error_cb(error)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        if sid not in self._subs:
            self._inline.pop(sid, None)
            self._takers.pop(sid, None)


def _asked_to_end() -> int:
    """How often this task was cancelled and has not taken it back."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class ReconnectingClient(FastClient):
    """A client that a refusal or an expiry sends into reconnection instead of closing it for good.

    nats-py closes for ever at any error of the server but a stale connection and a forbidden subject:
    nats.py issues 999 and 1019.
    """

    refused = False
    denied: deque[str]
    """Subjects that the server let this client not publish to, lower case, the latest last."""
    public_key = ""
    tries: Counter[str] | None = None
    """How often each server was tried for the first connection; None: it is there, and none is given up."""
    api_prefix = "$JS.API"
    """Where these credentials find JetStream's API; :func:`events.jetstream.api.prefix_of` asks."""

    def _connect_command(self) -> bytes:
        """Name the public key beside the JWT (nats-py sends one): a server without accounts knows only that."""
        command = super()._connect_command()
        if not self.public_key:
            return command
        verb, _, options = command.partition(b" ")
        named = {**msgspec.json.decode(options), "nkey": self.public_key}
        return b"%b %b\r\n" % (verb, msgspec.json.encode(named))

    async def _process_connect_init(self) -> None:
        """Log in. nats-py 2.16 takes whatever line follows for consent, also a PING or the end of the stream,
        leaves a failed handshake's socket open, waits without a limit for a peer to close (not reported there),
        and holds the certificate of a server that another one named to the address of that one; here, as in the
        Go client, it is held to its own address (a name of the first one's is kept).
        """
        if self._current_server is not None and self._host_is_ip(self._current_server.tls_name):
            self._current_server.tls_name = None
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

    async def _select_next_server(self) -> None:
        """Try each server twice for a first connection: nats-py hears of a spent one anew, for ever."""
        if self.tries is not None:
            self._server_pool = [one for one in self._server_pool if self.tries[one.uri.netloc] < 2]
        await super()._select_next_server()
        if self.tries is not None and self._current_server is not None:
            self.tries[self._current_server.uri.netloc] += 1

    # A cancellation that arrives inside these two is lost (nats.py issue 373, CPython issue 86296), and a
    # task that goes on for ever would never end.

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        asked = _asked_to_end()
        try:
            result = await super()._flush_pending(force_flush)
        except RuntimeError:  # uvloop's, of a closed transport: what waits goes out with the next connection
            return None
        if _asked_to_end() > asked:
            raise asyncio.CancelledError
        return result

    # A connection that is lost or slow at the wrong moment must end in an error that callers know, and in a
    # new connection: seen with nats-py 2.16 and uvloop, not reported upstream.

    async def _process_pong(self) -> None:
        """nats-py stops reading for good when the answer comes to a flush that was given up."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _read_loop(self) -> None:
        """Read until the connection is lost. At errors of its own nats-py stops, and stays connected."""
        await super()._read_loop()
        if self.is_connected and not _asked_to_end():
            await self._process_op_err(NatsError("nats: reading ended"))

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109  nats-py's own signature
        """As nats-py does it, but raises ConnectionClosedError when the connection has just been lost.

        Cancelled, what was published may be on its way.
        """
        try:
            await super().flush(timeout)
        except RuntimeError as error:  # what uvloop says of a closed transport
            raise ConnectionClosedError from error

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109  nats-py's own signature
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """As nats-py does it, but a cancellation is never lost.

        Cancelled, the request may still be answered, to nobody.
        """
        asked = _asked_to_end()
        message = await super().request(subject, payload, timeout, old_style, headers)
        if _asked_to_end() > asked:
            raise asyncio.CancelledError
        return message

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("' ").lower()
        if self.is_connecting or not text or not any(word in text for word in REFUSALS):
            await super()._process_err(err_msg)
            return
        self.refused = True
        await self._error_cb(NatsError(f"nats: the server ended the session: {text}"))
        await self._process_op_err(NatsError(f"nats: {text}"))

    def next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The least tried server, after a jittered pause that grows with its failures."""
        server = min(servers, key=lambda each: each.reconnects)
        longest_s = _PAUSE_REFUSED_S if self.refused else _PAUSE_LONGEST_S
        return server, backoff_s(server.reconnects, first_s=_PAUSE_FIRST_S, longest_s=longest_s)


async def publish_all(client: Client, messages: Iterable[Outgoing]) -> None:
    """Publish many messages, in order, at a fraction of what as many calls of ``publish`` cost.

    Raises what ``publish`` raises; whatever stands before the offending message may be on its way. Cancelled,
    some of the messages may be on their way.
    """
    if isinstance(client, FastClient):
        await client.publish_all(messages)
        return
    for message in messages:
        await client.publish(message.subject, message.body, headers=message.all_headers())


def forget(subscription: Subscription) -> None:
    """Make sure that a subscription is not made anew when the connection is restored.

    nats-py's ``drain`` closes it at once, and drops it only after the server has answered; where that did not
    come (the connection was lost, the time was up) the client would subscribe to it again behind a new
    connection, and ``unsubscribe`` refuses one that is closed (nats-py 2.12, ``Subscription._drain``).
    """
    client = subscription._conn  # noqa: SLF001  nats-py has no public way from one to the other
    subscription._closed = True  # noqa: SLF001
    if subscription._id in client._subs:  # noqa: SLF001
        subscription._stop_processing()  # noqa: SLF001
        client._remove_sub(subscription._id)  # noqa: SLF001


def inline(subscription: Subscription, take: Take | None = None) -> Subscription:
    """Call the subscription's callback as each message is read, instead of from a task of its own.

    For callbacks that never wait: the connection reads nothing until they return. Call it right
    behind ``subscribe``. ``take``, which raises nothing and minds no order, is called instead of the callback
    wherever no ``Msg`` is needed.
    """
    client = subscription._conn  # noqa: SLF001  nats-py has no public way from one to the other
    if isinstance(client, FastClient) and subscription._cb is not None:  # noqa: SLF001
        client._inline[subscription._id] = subscription._cb  # noqa: SLF001
        if take is not None:
            client._takers[subscription._id] = take  # noqa: SLF001  nor to its number
    return subscription
