"""Carries connections from a listening socket of the host to a port on this machine's loopback.

The socket was opened before the lab left the host's network namespace and is passed down as a descriptor;
a socket stays in the namespace that it was made in, so a browser outside reaches the console inside. It
must never listen on anything by itself.

    python -m deploy.lab.machines.forward DESCRIPTOR PORT
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress

CHUNK = 65536
CONNECTIONS_MAX = 128


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until the sender ends; `drain` keeps a slow receiver from filling the memory."""
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _main(descriptor: int, port: int) -> None:
    slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with slots:
            with suppress(OSError):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
                inner_writer.close()
        writer.close()

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_server(carry, sock=socket.socket(fileno=descriptor))
    async with server:
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
