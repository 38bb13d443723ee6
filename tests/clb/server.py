"""A backend of the tests: says its name per line (TCP), per datagram (UDP) and to any HTTP request.

SIGUSR1 makes it answer HTTP with 503 from then on, SIGUSR2 with 200 again.
"""

from __future__ import annotations

import asyncio
import signal
import sys


async def serve(name: str, port: int) -> None:
    status = ["200 OK"]
    loop = asyncio.get_running_loop()
    for number, said in ((signal.SIGUSR1, "503 Service Unavailable"), (signal.SIGUSR2, "200 OK")):
        loop.add_signal_handler(number, status.__setitem__, 0, said)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                peer = writer.get_extra_info("peername")[0]
                if line.startswith(b"GET "):
                    body = f"{name} {peer}\n".encode()
                    head = f"HTTP/1.0 {status[0]}\r\nContent-Length: {len(body)}\r\n\r\n"
                    writer.write(head.encode() + body)
                    await writer.drain()
                    break
                writer.write(f"{name} {peer}\n".encode())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(f"{name} {addr[0]}\n".encode(), addr)  # type: ignore[attr-defined]

    server = await asyncio.start_server(talk, "0.0.0.0", port, backlog=1024)
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("0.0.0.0", port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
