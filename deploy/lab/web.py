"""A stand-in for what hides behind the CLB pair, and its client. Runs inside namespaces; standard library only.

    web.py serve NAME PORT [CERTIFICATE KEY]    answers each GET with its name, by TLS if it has a certificate
    web.py ask ADDRESS PORT [CERTIFICATE]       asks every 20 ms by a new connection until its input ends;
                                                a line of JSON per request: when, who answered (or nobody)

It must never import anything of ours: it stands for other people's programs.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time

PAUSE_S = 0.02
PATIENCE_S = 0.5


async def serve(name: str, port: int, certificate: str = "", key: str = "") -> None:
    """Until killed."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                await reader.readline()
                body = name.encode()
                writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (OSError, TimeoutError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", port, ssl=context, backlog=1024)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


async def _once(address: str, port: int, context: ssl.SSLContext | None) -> None:
    started, name = time.time(), ""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(address, port, ssl=context)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            name = (await reader.read()).rpartition(b"\r\n\r\n")[2].decode()
            writer.transport.abort()
    except (OSError, TimeoutError):
        name = ""
    sys.stdout.write(json.dumps([started, name]) + "\n")


async def ask(address: str, port: int, certificate: str = "") -> None:
    """Until the standard input ends."""
    context = ssl.create_default_context(cafile=certificate) if certificate else None
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    under_way: set[asyncio.Task[None]] = set()
    while not ended.done():
        task = asyncio.create_task(_once(address, port, context))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        await asyncio.sleep(PAUSE_S)
    await asyncio.gather(*under_way)


if __name__ == "__main__":
    _what, _where, _port, *_rest = sys.argv[1:]
    asyncio.run((serve if _what == "serve" else ask)(_where, int(_port), *_rest))
