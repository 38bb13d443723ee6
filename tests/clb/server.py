"""A backend of the tests: says its name per line (TCP), per datagram (UDP) and to any HTTP request."""

from __future__ import annotations

import asyncio
import sys


async def serve(name: str, port: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                peer = writer.get_extra_info("peername")[0]
                if line.startswith(b"GET "):
                    body = f"{name} {peer}\n".encode()
                    writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
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
