"""Reading the whole log, against the bare pull loop that neither decodes nor checks anything.

The bare loop is the fastest shape known for nats-py (reference: a pull loop with a callback): one
consumer without acknowledgements, the next batch asked for while the last arrives. Both read the
beginning of the same log from the same server, in many short turns. Rates are by the reader's CPU time, which
is what bounds it (the server is another process), and of the turns the calmest counts: others only add to it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.chain import genesis, verify_link
from events.codec import decode
from events.jetstream.api import call
from events.jetstream.direct import EVERY, DirectReader
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from tests.bench.agent_place import row
from tests.bench.processes import cpu_s
from tests.contract.samples import CLUSTER, fill

EVENTS, READ = 40_000, 10_000
TURNS = 15
BATCH = 1000
BLOCKS, ASKED = 15, 10
STREAM = subjects.stream(CLUSTER)
TARGETS = {"read": 0.6, "read and decode": 0.6, "read, decode and verify the chain": 0.55}
"""The last is at 0.58 to 0.63 by CPU time."""


def run() -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    return asyncio.run(_run())


async def _bare(client: Client, turn: int) -> int:
    """Count READ messages by a bare pull loop."""
    name = f"bare-{turn}"
    config = {
        "name": name,
        "deliver_policy": "all",
        "ack_policy": "none",
        "mem_storage": True,
        "inactive_threshold": 60 * 10**9,
    }
    await call(
        client,
        f"$JS.API.CONSUMER.CREATE.{STREAM}.{name}",
        {"stream_name": STREAM, "config": config},
        timeout_s=5,
    )
    inbox, done = client.new_inbox(), asyncio.Event()
    request = json.dumps({"batch": BATCH, "expires": 5 * 10**9}).encode()
    got = asked = 0

    async def on_message(message: Msg) -> None:
        nonlocal got, asked
        got += 1
        if got == READ:
            done.set()
        elif asked < READ and asked - got <= BATCH // 2:
            asked += BATCH
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}", request, reply=inbox)

    subscription = await client.subscribe(inbox, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)
    asked = BATCH
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}", request, reply=inbox)
    await asyncio.wait_for(done.wait(), 60)
    await subscription.unsubscribe()
    return got


async def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        async with EmbeddedServer(ServerOptions(store_dir=Path(directory))) as server:
            client = await connect(BusOptions(servers=(server.url,)), name="bench")
            log = await JetStreamLog.open(client, CLUSTER, create=True)
            await fill(log, EVENTS)

            async def read() -> int:
                return sum([len(batch.messages) async for batch in log.read(until=READ)])

            async def read_and_decode() -> int:
                count = 0
                async for batch in log.read(until=READ):
                    for message in batch.messages:
                        decode(message)
                        count += 1
                return count

            async def read_decode_and_verify() -> int:
                at = genesis(CLUSTER)
                async for batch in log.read(until=READ):
                    for message in batch.messages:
                        at = verify_link(at, message.sequence, message.subject, message.headers, message.body)
                        decode(message)
                return at.sequence

            async def read_without_consumer() -> int:
                return sum(
                    [len(batch.messages) async for batch in LiveReader(client, CLUSTER).read(until=READ)]
                )

            ways: dict[str, Callable[[], Awaitable[int]]] = {
                "read": read,
                "read and decode": read_and_decode,
                "read, decode and verify the chain": read_decode_and_verify,
                "read by direct get": read_without_consumer,
            }
            rates: dict[str, list[float]] = {name: [] for name in ("bare", *ways)}
            for turn in range(TURNS):
                for name, way in {"bare": lambda turn=turn: _bare(client, turn), **ways}.items():
                    gc.collect()
                    began = time.process_time()
                    if await way() != READ:
                        raise RuntimeError(f"{name}: not all events")
                    rates[name].append(READ / (time.process_time() - began))
            async for _ in log.read():  # the end, too: what is asked for then is not in the server's cache
                pass
            questions = await _questions(client, server.pid)
            await client.close()
    bare = max(rates["bare"])
    rows = []
    for name in ways:
        ours = max(rates[name])
        target = TARGETS.get(name)
        rows.append(
            {
                "name": f"bus: {name}, against the bare pull loop",
                "ours": ours,
                "baseline": bare,
                "unit": "events/s",
                "ratio": ours / bare,
                "target": target,
                "better": "higher",
                "ok": target is None or ours / bare >= target,
            }
        )
    name = f"bus: server CPU of what brings an agent two missed events of {EVENTS:,} / asked by subject"
    return [*rows, row(name, *questions, "µs", 0.7)]


async def _questions(client: Client, server: int) -> tuple[float, float]:
    """Microseconds of the server's CPU time."""
    reader, wildcards = DirectReader(client, STREAM), (EVERY, subjects.events_wildcard(CLUSTER))
    spent: tuple[list[float], list[float]] = [], []
    for _ in range(BLOCKS):
        for wildcard, used in zip(wildcards, spent, strict=True):
            before = cpu_s(server)
            for _ in range(ASKED):
                answer = await reader.after(EVENTS - 2, wildcard, timeout_s=30)
                assert len(answer.messages) == 2
            used.append((cpu_s(server) - before) / ASKED * 1e6)
    await reader.close()
    return statistics.median(spent[0]), statistics.median(spent[1])
