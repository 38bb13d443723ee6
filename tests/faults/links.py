"""A TCP link that can be cut: connections die without a word, new ones are not answered."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit


class Link:
    """Forwards one port of 127.0.0.1 to a server's."""

    def __init__(self, server_url: str) -> None:
        target = urlsplit(server_url)
        assert target.hostname is not None
        assert target.port is not None
        self._target = (target.hostname, target.port)
        self._pumps: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        self._up.set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._up.set()
        self._server.close()
        self._drop()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break what flows; what connects now waits in vain."""
        self._up.clear()
        self._drop()

    def mend(self) -> None:
        self._up.set()

    def _drop(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        try:
            await self._up.wait()
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, there_writer))
                    group.create_task(self._pump(there_reader, writer))
            finally:
                there_writer.close()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._pumps.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        raise ConnectionError("one side closed")
