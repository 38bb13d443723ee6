"""Checks of backends against real servers on loopback: what is healthy, and how a flapping one is tamed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.credentials.certificates import create_authority, issue_server
from events.protocol.clb import Backend, BackendKey
from nodeagent.gateway.health import RISE_LONGEST, Health, check

LIMIT_S = 60.0


class Server:
    """Answers every connection with ``answer`` and closes it; counts them."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked = 0
        self.port = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        with contextlib.suppress(OSError):
            if await reader.readline() and self.answer:
                writer.write(self.answer)
                await writer.drain()
            else:
                await reader.read()  # silent until the other side gives up
        writer.close()


@contextlib.asynccontextmanager
async def serving(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    made = Server(answer)
    server = await asyncio.start_server(made.talk, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def backend(port: int, **changes: Any) -> tuple[BackendKey, Backend]:
    made = Backend(
        affinity="none", check="http", check_path="/healthz", check_port=0, check_interval_s=0.01,
        check_timeout_s=1.0, rise=2, fall=2, added=1,
    )  # fmt: skip
    key = BackendKey("main", "apiserver", "tcp", 443, "127.0.0.1", port)
    return key, msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    ("kind", "answer", "said"),
    [
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", ""),
        ("http", b"HTTP/1.0 302 Found\r\n\r\n", ""),
        ("http", b"HTTP/1.1 404 Not Found\r\n\r\n", "answers 404 to /healthz"),
        ("http", b"HTTP/1.1 503\r\n\r\n", "answers 503"),
        ("http", b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        ("http", b"x" * 100_000, "does not speak HTTP"),
        ("http", b"\n", "does not speak HTTP"),
        ("tcp", b"", ""),
        ("https", b"HTTP/1.1 200 OK\r\n\r\n", "127.0.0.1:"),
    ],
)
async def test_what_a_check_says(kind: str, answer: bytes, said: str) -> None:
    async with serving(answer) as server:
        found = await check(*backend(server.port, check=kind))
    assert (found == "") == (said == "")
    assert said in found


async def test_a_silent_and_an_absent_server_are_told_apart() -> None:
    async with serving(b"") as server:
        assert "no answer" in await check(*backend(server.port, check_timeout_s=0.05))
        port = server.port
    assert "Connect" in await check(*backend(port)) or "refused" in await check(*backend(port))


async def test_tls_is_checked_for_an_answer_not_for_its_owner(tmp_path: Path) -> None:
    create_authority(tmp_path)
    _, certificate, key = issue_server(tmp_path, "api", ["192.0.2.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n", context) as server:
        assert await check(*backend(server.port, check="https")) == ""


async def test_a_flapping_backend_needs_more_good_answers_each_time() -> None:
    """The server turns bad whenever it is believed well, and well whenever it is given up."""
    good, bad = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 503 No\r\n\r\n"
    streaks: list[int] = []
    enough = asyncio.Event()
    async with serving(bad) as server:

        def turned() -> None:
            verdict = health.verdict(key)
            assert verdict is not None
            if server.asked == 1:
                return  # the first verdict of all: nothing has changed yet
            streaks.append(server.asked - sum(streaks))
            server.answer = bad if verdict[0] else good
            if len(streaks) == 12:
                enough.set()

        health = Health(turned)
        key, item = backend(server.port)
        await health.follow({key: item})
        try:
            async with asyncio.timeout(LIMIT_S):
                await enough.wait()
        finally:
            await health.close()
    assert streaks[0::2] == [2] * 6, "it is given up as quickly as ever"
    assert streaks[1::2] == [4, 8, 16, 32, RISE_LONGEST, RISE_LONGEST]
