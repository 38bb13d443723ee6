"""One event to 1,000 connected agents.

The same bytes go out as an event (stored, synced, republished, put in order by each agent's reader) and as
a plain NATS message, turn by turn, to the same processes, in several rounds of which the median ratio
counts: another program that runs for a second decides a round's p99.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from tests.bench.bus_fleet import AGENTS, PAUSE_S, PLAIN, Fleet
from tests.contract.samples import CLUSTER, sealed

EVENTS = 40
ROUNDS = 5


class Delays(NamedTuple):
    """After how many milliseconds an event of the log and a plain message had come."""

    live_ms: float
    plain_ms: float


def run() -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    return asyncio.run(_run())


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        rounds = [await _fan_out(Path(directory) / f"fan-out-{turn}") for turn in range(ROUNDS)]
        print(rounds, file=sys.stderr)
    return _fan_out_rows(rounds)


def _fan_out_rows(rounds: list[dict[float, Delays]]) -> list[dict[str, Any]]:
    """The round in the middle, by ratio."""
    rows = []
    for share, target in ((0.99, 1.3), (0.5, None)):
        delays = sorted((each[share] for each in rounds), key=lambda found: found.live_ms / found.plain_ms)
        live_ms, plain_ms = delays[len(delays) // 2]
        rows.append(
            {
                "name": f"bus: one event to {AGENTS} agents, p{share * 100:g}, against plain NATS fan-out",
                "ours": live_ms,
                "baseline": plain_ms,
                "unit": "ms",
                "ratio": live_ms / plain_ms,
                "target": target,
                "better": "lower",
                "ok": target is None or live_ms / plain_ms <= target,
            }
        )
    return rows


async def _fan_out(directory: Path) -> dict[float, Delays]:
    """Of one round: share of the arrivals → after how long they had come."""
    async with EmbeddedServer(ServerOptions(store_dir=directory)) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="bench")
        log = await JetStreamLog.open(client, CLUSTER, create=True)
        head = await log.head()
        fleet = Fleet(server)
        try:
            await fleet.launch(CLUSTER, "both", AGENTS)
            sent: dict[str, dict[int, int]] = {"live": {}, "plain": {}}
            for number in range(1, EVENTS + 1):
                messages, head = sealed(head, 1)
                sent["live"][number] = time.monotonic_ns()
                await log.append(messages, expected=number - 1)
                await asyncio.sleep(PAUSE_S)
                headers = {**messages[0].headers, "n": str(number)}
                sent["plain"][number] = time.monotonic_ns()
                await client.publish(PLAIN, messages[0].body, headers=headers)
                await client.flush()
                await asyncio.sleep(PAUSE_S)
            arrivals = await _all_arrivals(fleet)
        finally:
            await fleet.end()
            await client.close()
    delays: dict[str, list[float]] = {}
    for kind, by_number in arrivals.items():
        delays[kind] = [
            (moment - sent[kind][number]) / 1e6
            for number, moments in by_number.items()
            if number > 5  # the first ones warm everything up
            for moment in moments
        ]
    return {
        share: Delays(_percentile(delays["live"], share), _percentile(delays["plain"], share))
        for share in (0.99, 0.5)
    }


async def _all_arrivals(fleet: Fleet) -> dict[str, dict[int, list[int]]]:
    """Wait until every message has come to every agent, once."""
    gathered: dict[str, dict[int, list[int]]] = {"live": {}, "plain": {}}
    async with asyncio.timeout(60):
        while True:
            for kind, by_number in (await fleet.arrivals()).items():
                for number, moments in by_number.items():
                    gathered[kind].setdefault(number, []).extend(moments)
            counts = {len(moments) for by_number in gathered.values() for moments in by_number.values()}
            if counts == {AGENTS} and all(len(by_number) == EVENTS for by_number in gathered.values()):
                return gathered
            if max(counts) > AGENTS:
                raise RuntimeError(f"a message came {max(counts)} times to {AGENTS} agents")
            await asyncio.sleep(PAUSE_S)
