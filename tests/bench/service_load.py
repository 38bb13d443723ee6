"""A load generator in a process of its own: joins through the service, many at once.

    python -m tests.bench.service_load URL CLUSTER COUNT CONCURRENCY [FIRST]

It speaks the NATS protocol itself (a request is one write, a reply one split), because a client
library in Python would cost as much per request as the service under test. Each of the CONCURRENCY
callers sends its next join only when its last one was answered; FIRST is the number of the first
node. Prints one JSON line: joins per second, and the latency of one join in milliseconds (p50, p99).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from urllib.parse import urlsplit

import msgspec

from events import subjects
from events.ids import new_id
from events.protocol.commands import COMMAND_ID, JoinNode

GIVE_UP_S = 300
INBOX = "_INBOX.load"


def join(number: int) -> JoinNode:
    """The join of the ``number``-th node; underlay addresses are unique up to four million."""
    return JoinNode(
        node=f"node-{number}",
        uid=f"uid-{number}",
        kind="cloud" if number % 2 else "external",
        underlay=f"100.{64 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}",
    )


def _frame(cluster: str, number: int, place: int) -> bytes:
    """The request of the ``number``-th node as it goes over the wire; the reply subject ends with its place."""
    body = msgspec.json.encode(join(number))
    head = f"NATS/1.0\r\n{COMMAND_ID}: {new_id()}\r\n\r\n".encode()
    subject = subjects.node_command(cluster, f"node-{number}", "join")
    line = f"HPUB {subject} {INBOX}.{place} {len(head)} {len(head) + len(body)}\r\n"
    return line.encode() + head + body + b"\r\n"


class _Callers(asyncio.Protocol):
    """All callers on one connection."""

    def __init__(self, frames: list[bytes], concurrency: int) -> None:
        self._frames = deque(enumerate(frames))
        self._sent = [0.0] * len(frames)
        self._left = len(frames)
        self._concurrency = concurrency
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.took: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        options = '{"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"bench"}'
        transport.write(f"CONNECT {options}\r\nSUB {INBOX}.* 1\r\n".encode())
        self._send(self._concurrency)

    def _send(self, count: int) -> None:
        assert self._transport is not None
        now = time.perf_counter()
        out = []
        for _ in range(min(count, len(self._frames))):
            number, frame = self._frames.popleft()
            self._sent[number] = now
            out.append(frame)
        if out:
            self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        position = answered = 0
        now = time.perf_counter()
        while (end := buffer.find(b"\r\n", position)) >= 0:
            line = buffer[position:end]
            if not line.startswith((b"MSG ", b"HMSG ")):
                if line == b"PING":
                    assert self._transport is not None
                    self._transport.write(b"PONG\r\n")
                position = end + 2
                continue
            words = line.split()
            size = int(words[-1])
            if len(buffer) < end + 2 + size + 2:
                break
            if words[0] == b"HMSG" or b'"code":""' not in buffer[end + 2 : end + 2 + size]:
                self._fail(f"refused: {buffer[end + 2 : end + 2 + size]!r}")
                return
            self.took.append(now - self._sent[int(words[1].rpartition(b".")[2])])
            answered += 1
            position = end + 2 + size + 2
        self._buffer = buffer[position:]
        self._left -= answered
        if self._left == 0 and not self.done.done():
            self.done.set_result(None)
        self._send(answered)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was lost: {exc}")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


async def load(url: str, cluster: str, count: int, concurrency: int, first: int = 0) -> dict[str, float]:
    """Join ``count`` nodes from number ``first`` on, ``concurrency`` at a time, each once.

    Raises RuntimeError when one is refused.
    """
    frames = [_frame(cluster, first + place, place) for place in range(count)]
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    transport, callers = await loop.create_connection(
        lambda: _Callers(frames, concurrency), address.hostname, address.port
    )
    async with asyncio.timeout(GIVE_UP_S):
        await callers.done
    elapsed = time.perf_counter() - started
    transport.close()
    took = sorted(callers.took)
    return {
        "joins_per_s": count / elapsed,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[len(took) * 99 // 100] * 1000,
    }


def main() -> None:
    url, cluster = sys.argv[1:3]
    print(json.dumps(asyncio.run(load(url, cluster, *map(int, sys.argv[3:])))))


if __name__ == "__main__":
    main()
