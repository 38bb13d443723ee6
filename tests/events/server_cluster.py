"""Three embedded servers that replicate each other: for the lab and for fault tests.

Three servers on one machine protect against the loss of a process, not of the machine; in
production each of the three runs on a machine of its own (``deploy/nats/cluster.conf``).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

from events.bus.server.config import ClusterMember, ServerOptions
from events.bus.server.process import EmbeddedServer
from tests.ports import free_ports


class ServerCluster:
    """``size`` servers (three, by default) with one directory each below ``store_dir``."""

    def __init__(
        self, store_dir: Path, *, size: int = 3, host: str = "127.0.0.1", ports: tuple[int, ...] = ()
    ) -> None:
        routes = free_ports(size, host)
        clients = list(ports) or [0] * size
        self.servers = [
            EmbeddedServer(
                ServerOptions(
                    store_dir=store_dir / f"server-{index + 1}",
                    host=host,
                    port=clients[index],
                    name=f"isthmus-{index + 1}",
                    member=ClusterMember(
                        cluster="isthmus",
                        port=routes[index],
                        routes=tuple(f"{host}:{port}" for port in routes),
                    ),
                )
            )
            for index in range(size)
        ]

    @property
    def urls(self) -> tuple[str, ...]:
        """The client URLs of all servers."""
        return tuple(server.url for server in self.servers)

    async def start(self) -> None:
        """Start all at once, or none. Raises Unavailable(bus_unreachable).

        Cancelled, some servers may run: :meth:`stop` ends them.
        """
        results = await asyncio.gather(*(server.start() for server in self.servers), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.stop()
                raise result

    async def stop(self) -> None:
        """Stop all at once. Cancelled, some servers may still run; safe to repeat."""
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
