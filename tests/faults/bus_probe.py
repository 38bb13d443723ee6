"""Whether the bus itself works: what a client that knows nothing of the product can store at this moment.

Under many faults the servers have no majority, or are electing, for most of the time; then nobody can answer.
"""

from __future__ import annotations

import asyncio

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

EVERY_S = 0.25
STREAM = "BESIDE"


class BusProbe:
    """Stores one small message after the other in a stream of its own, on as many servers as the log."""

    def __init__(self, client: Client, *, servers: int) -> None:
        self._client = client
        self._servers = servers
        self._works_since_s: float | None = None
        self._failing_since_s: float | None = None
        self.longest_s = 0.0
        """For how long it took nothing, at most."""
        self.worked_s = 0.0
        """For how long it has worked, in total."""

    def works_s(self) -> float:
        """For how long it has taken everything."""
        since_s = self._works_since_s
        return 0.0 if since_s is None else asyncio.get_running_loop().time() - since_s

    async def run(self) -> None:
        """Until cancelled."""
        loop, stream, there = asyncio.get_running_loop(), self._client.jetstream(timeout=1.5), False
        last_s: float | None = None
        while True:
            began_s = loop.time()
            try:
                if not there:
                    await stream.add_stream(
                        name=STREAM, subjects=["beside"], num_replicas=self._servers, max_msgs=1000
                    )
                    there = True
                await stream.publish("beside", b"", timeout=1.5)
            except (NatsError, JetStreamError, TimeoutError):
                self._works_since_s = last_s = None
                if self._failing_since_s is None:
                    self._failing_since_s = began_s
            else:
                self.worked_s += loop.time() - (last_s or began_s)
                last_s = loop.time()
                if self._works_since_s is None:
                    self._works_since_s = loop.time()
                if self._failing_since_s is not None:
                    self.longest_s = max(self.longest_s, loop.time() - self._failing_since_s)
                    self._failing_since_s = None
            await asyncio.sleep(EVERY_S)
