"""What nats-py does with each message, fast: a base class for the connections of :mod:`events.bus.connection`.

An event carries a dozen headers, and nats-py spends more time on them than everything else together
spends on the event (150 µs to read one block). Header blocks are read and written here as it does,
ten times faster; whatever looks unusual goes to nats-py's own code. Many messages are sent with one
call (:func:`publish_all`), and a subscription whose callback never waits need not have each message
carried to another task (:func:`inline`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, ConnectionDrainingError, MaxPayloadError
from nats.protocol import command as protocol

_NAMES_LIMIT = 1024
_LINE = b"NATS/1.0\r\n"
_END = "\r\n"
_FORMS_LIMIT = 256

_read_names: dict[str, str] = {}  # header names seen and found valid; the value is the interned name
_sent_names: set[str] = set()  # header names that nats-py has accepted
_forms: dict[tuple[str, ...], str] = {}  # names of a block → the block with places for their values


def parse_header_lines(raw: bytes) -> dict[str, str]:
    """What ``Client._parse_header_lines`` returns, for a block of ``Name: Value`` lines."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Client._parse_header_lines(raw)  # noqa: SLF001  the original, for odd bytes
    headers: dict[str, str] = {}
    known = _read_names
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon:
            continue
        interned = known.get(name)
        if interned is None:
            stripped = name.strip(" \t\r\n\x0b\x0c")
            if not stripped.isascii() or any(c.isspace() for c in stripped):
                continue
            interned = stripped
            if len(known) < _NAMES_LIMIT:
                known[name] = stripped
        headers[interned] = value.strip(" \t\r\n\x0b\x0c")
    return headers


def _header_block(headers: Mapping[str, str]) -> bytes | None:
    """The block as nats-py would write it; None when that is better left to nats-py."""
    names = tuple(headers)
    form = _forms.get(names)
    if form is None:
        if not headers.keys() <= _sent_names or any("%" in name for name in names):
            return None
        form = f"{_LINE.decode()}{''.join([f'{name}: %s' + _END for name in names])}{_END}"
        if len(_forms) < _FORMS_LIMIT:
            _forms[names] = form
    text = form % tuple(headers.values())
    lines = len(names) + 2
    if text.count("\n") != lines or text.count("\r") != lines:
        return None
    return text.encode()


class Outgoing(NamedTuple):
    """A message to publish."""

    subject: str
    body: bytes
    headers: Mapping[str, str] | None = None


class FastClient(Client):
    """A client that reads and writes header blocks as this module does."""

    _parse_header_lines = staticmethod(parse_header_lines)

    def __init__(self) -> None:
        super().__init__()
        self._inline: dict[int, Callable[[Msg], Awaitable[None]]] = {}

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        block = _header_block(headers) if headers and subject else None
        if block is None:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            if headers and len(_sent_names) < _NAMES_LIMIT:
                _sent_names.update(name for name in headers if name and name == name.strip())
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(protocol.hpub_cmd(subject, reply, block, payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def publish_all(self, messages: Iterable[Outgoing]) -> None:
        """See :func:`publish_all`. Subjects are ours, so that their spelling is not looked at."""
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        if not self.is_connected:  # nats-py bounds what waits for the connection
            for subject, body, headers in messages:
                await self.publish(subject, body, headers=dict(headers) if headers else None)
            return
        parts: list[bytes] = []
        count = size = 0
        for subject, body, headers in messages:
            length = len(body)
            if length > self._max_payload:
                raise MaxPayloadError
            if not headers:
                parts.append(f"PUB {subject} {length}\r\n".encode())
            else:
                block = _header_block(headers)
                if block is None:
                    await self._send_parts(parts, count, size)
                    count = size = 0
                    await self.publish(subject, body, headers=dict(headers))
                    continue
                parts.append(f"HPUB {subject} {len(block)} {len(block) + length}\r\n".encode())
                parts.append(block)
            parts.append(body)
            parts.append(b"\r\n")
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

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        callback = self._inline.get(sid)
        subscription = self._subs.get(sid)
        if callback is None or subscription is None or subscription.pending_msgs or subscription._max_msgs:  # noqa: SLF001  what ends by itself, nats-py counts
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        subscription._received += 1  # noqa: SLF001  as nats-py counts
        if not headers:
            parsed = None
        elif headers.startswith(_LINE):
            parsed = parse_header_lines(headers[len(_LINE) :]) or None
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


async def publish_all(client: Client, messages: Iterable[Outgoing]) -> None:
    """Publish many messages, in order, at a fraction of what as many calls of ``publish`` cost.

    Raises what ``publish`` raises; whatever stands before the offending message may be on its way.
    """
    if isinstance(client, FastClient):
        await client.publish_all(messages)
        return
    for subject, body, headers in messages:
        await client.publish(subject, body, headers=dict(headers) if headers else None)


def inline(subscription: Subscription) -> Subscription:
    """Call the subscription's callback as each message is read, instead of from a task of its own.

    For callbacks that never wait: the connection reads nothing until they return. Call it right
    behind ``subscribe``.
    """
    client = subscription._conn  # noqa: SLF001  nats-py has no public way from one to the other
    if isinstance(client, FastClient) and subscription._cb is not None:  # noqa: SLF001
        client._inline[subscription._id] = subscription._cb  # noqa: SLF001
    return subscription
