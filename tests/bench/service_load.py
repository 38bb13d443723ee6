"""A load generator in a process of its own: joins through the service, many at once.

    python -m tests.bench.service_load URL CLUSTER COUNT CONCURRENCY

Prints one JSON line: joins per second and the latency of one join in milliseconds (p50, p99).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import msgspec

from events import subjects
from events.bus import BusOptions, connect
from events.commands import COMMAND_ID, CommandReply, JoinNode
from events.ids import new_id

_reply = msgspec.json.Decoder(CommandReply).decode


def join(number: int) -> JoinNode:
    """The join of the ``number``-th node; underlay addresses are unique up to four million."""
    return JoinNode(
        node=f"node-{number}",
        uid=f"uid-{number}",
        kind="cloud" if number % 2 else "external",
        underlay=f"100.{64 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}",
    )


async def load(url: str, cluster: str, count: int, concurrency: int) -> dict[str, float]:
    """Join ``count`` nodes, ``concurrency`` at a time, each once. Raises when one is refused."""
    client = await connect(BusOptions(servers=(url,)), name="bench-load")
    encode = msgspec.json.Encoder().encode
    # What a client knows before it asks is made before the clock starts.
    requests = [
        (subjects.node_command(cluster, f"node-{n}", "join"), encode(join(n)), {COMMAND_ID: new_id()})
        for n in range(count)
    ]
    pending = iter(requests)
    took: list[float] = []

    async def lane() -> None:
        for subject, body, headers in pending:
            started = time.perf_counter()
            message = await client.request(subject, body, timeout=30, headers=headers)
            took.append(time.perf_counter() - started)
            reply = _reply(message.data)
            if reply.code:
                raise RuntimeError(f"{reply.code}: {reply.message}")

    started = time.perf_counter()
    await asyncio.gather(*[lane() for _ in range(concurrency)])
    elapsed = time.perf_counter() - started
    await client.close()
    took.sort()
    return {
        "joins_per_s": count / elapsed,
        "p50_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[len(took) * 99 // 100] * 1000,
    }


def main() -> None:
    url, cluster, count, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(load(url, cluster, count, concurrency))))


if __name__ == "__main__":
    main()
