"""A stand-in for the backends of the CLB pair, and its client. Runs inside namespaces; standard library only.

    web.py serve NAME PORT [CERTIFICATE KEY]    answers each GET with its name, by TLS if it has a certificate
    web.py ask ADDRESS PORT PATIENCE [AUTHORITY]      asks every 20 ms by a new connection until its input ends,
                                                      and every 100 ms by each of a few that stay open

A new connection is given up after PATIENCE seconds without an answer: a short one measures outages, a long
one asks only whether an answer comes at all.

`ask` writes "asking" when it begins, then a line of JSON per new connection, [when, who answered or ""], and
one per lasting connection: {"server": who, "answered": how often, "broken": why or ""}.

It must never import anything of ours: it plays other people's programs.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time

PAUSE_S = 0.02
LASTING = 4
LASTING_PAUSE_S = 0.1
LASTING_PATIENCE_S = 3.0
"""How long a connection in progress may stall: TCP sends again after 0.2, 0.6, 1.4 s (as Linux starts)."""

IDLE_S = 30.0


async def serve(name: str, port: int, certificate: str = "", key: str = "") -> None:
    """Until killed.

    Cancelled, it listens no longer; open connections go on until their clients end them or the event loop ends.
    """
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    body = name.encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lasting = True
            while lasting:
                async with asyncio.timeout(IDLE_S):
                    request = await reader.readuntil(b"\r\n\r\n")
                    lasting = b"\r\nconnection: close" not in request.lower()
                    writer.write(reply)
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", port, ssl=context, backlog=1024)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


def _tell(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")


async def _question(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, last: bool) -> str:
    """The name that a server answers. Raises OSError or EOFError."""
    writer.write(b"GET / HTTP/1.1\r\nHost: pair\r\n" + (b"Connection: close\r\n" if last else b"") + b"\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return (await reader.readexactly(length)).decode()


async def _once(address: str, port: int, context: ssl.SSLContext | None, patience_s: float) -> None:
    started, name = time.time(), ""
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_connection(address, port, ssl=context)
            name = await _question(reader, writer, last=True)
            writer.transport.abort()
    except (OSError, EOFError, TimeoutError):
        name = ""
    _tell([started, name])


async def _lasting(address: str, port: int, context: ssl.SSLContext | None, ended: asyncio.Task[str]) -> None:
    server, answered, broken = "", 0, ""
    try:
        async with asyncio.timeout(LASTING_PATIENCE_S):
            reader, writer = await asyncio.open_connection(address, port, ssl=context)
        while not ended.done():
            async with asyncio.timeout(LASTING_PATIENCE_S):
                server = await _question(reader, writer, last=False)
            answered += 1
            await asyncio.sleep(LASTING_PAUSE_S)
        writer.transport.abort()
    except (OSError, EOFError, TimeoutError) as error:
        broken = str(error) or type(error).__name__
    _tell({"server": server, "answered": answered, "broken": broken})


async def ask(address: str, port: int, patience: str, certificate: str = "") -> None:
    """Until the standard input ends.

    Cancelled while it asks, its connections and the thread that reads the standard input are not ended: they go
    on.
    """
    context = ssl.create_default_context(cafile=certificate) if certificate else None
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    under_way = {asyncio.create_task(_lasting(address, port, context, ended)) for _ in range(LASTING)}
    sys.stdout.write("asking\n")
    sys.stdout.flush()
    while not ended.done():
        task = asyncio.create_task(_once(address, port, context, float(patience)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        await asyncio.sleep(PAUSE_S)
    await asyncio.gather(*under_way)


if __name__ == "__main__":
    _what, _where, _port, *_rest = sys.argv[1:]
    asyncio.run((serve if _what == "serve" else ask)(_where, int(_port), *_rest))
