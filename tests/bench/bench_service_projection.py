"""The projection as the controller runs it, against a bare loop that decodes and writes the same rows.

Ours reads through the log's port, verifies the hash chain, decodes, hops to the database's thread and
back for each transaction, and keeps the event loop free. The baseline decodes and writes the very
same rows in the same transactions in one synchronous loop, without verifying anything.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from controlplane.changes import Changes
from controlplane.cluster.decide import decide
from controlplane.cluster.decision import AdvanceDrains
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState, Node, Range
from controlplane.controller.hooks import Observer
from controlplane.readmodel.projector import BATCH, Projector
from controlplane.readmodel.rows import microseconds
from controlplane.readmodel.store import Store, _prepare
from events.chain import genesis
from events.codec import Cause, StoredMessage, decode, seal
from events.memory import MemoryLog
from events.protocol.commands import DefineCluster, LeaveNode
from events.types import (
    ClusterDefined,
    NodeJoined,
    NodeLeft,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)
from tests.bench.service_load import join

CLUSTER = "bench"
EVENTS = 40_000
ROUNDS = 3


async def history() -> MemoryLog:
    """A log of joins, leaves, drains and frees over two thousand nodes."""
    log = MemoryLog(CLUSTER, batch_size=1000)
    state, head, now = ClusterState(CLUSTER), genesis(CLUSTER), datetime(2026, 1, 1, tzinfo=UTC)
    pick = random.Random(1)
    define = DefineCluster(container_cidr="10.0.0.0/8", pods_per_node=64, services=4096, quarantine_s=0.0)
    pending: Any = define
    number = 0
    while head.sequence < EVENTS:
        now += timedelta(milliseconds=20)
        events = decide(state, pending, now).events
        if events:
            cause = Cause(command_id=f"command-{number}", actor="bench", time=now, source="isthmus/bench")
            messages, head = seal(CLUSTER, head, [(cause, events)])
            await log.append(messages, expected=state.sequence)
            for event in events:
                evolve(state, state.sequence + 1, event)
        number += 1
        if state.nodes and pick.random() < 0.4:
            node = state.nodes[f"node-{pick.randrange(2000)}"] if len(state.nodes) == 2000 else None
            node = node or next(iter(state.nodes.values()))
            pending = LeaveNode(node=node.name, uid=node.uid)
        elif number % 50 == 0:
            pending = AdvanceDrains(applied=dict.fromkeys(state.by_uid, state.sequence))
        else:
            pending = join(pick.randrange(2000))
    return log


async def ours(log: MemoryLog, directory: Path) -> float:
    """Events per second through the projector."""
    projector = Projector(directory, log, Changes(), observer=Observer())
    await projector.open()
    end = (await log.head()).sequence
    started = time.perf_counter()
    task = asyncio.create_task(projector.run())
    await projector.reached(end, timeout_s=300)
    took_s = time.perf_counter() - started
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await projector.close()
    return end / took_s


encode = msgspec.json.Encoder().encode
OPEN_ROW = 9223372036854775807
END_NODE = f"UPDATE node SET valid_to = ?, to_us = ? WHERE name = ? AND valid_to = {OPEN_ROW}"
END_RANGE = f"UPDATE range SET valid_to = ?, to_us = ? WHERE idx = ? AND valid_to = {OPEN_ROW}"
NEW_NODE = "INSERT INTO node (name, row, unreachable, valid_from, from_us) VALUES (?, ?, 0, ?, ?)"
NEW_RANGE = (
    "INSERT INTO range (idx, node, row, phase, watermark, cursor_after, valid_from, from_us)"
    " VALUES (?, ?, ?, ?, 0, ?, ?, ?)"
)
RESTING_RANGE = (
    "INSERT INTO range (idx, node, row, phase, until_us, watermark, valid_from, from_us)"
    " SELECT idx, node, row, 'quarantined', ?, ?, ?, ? FROM range WHERE idx = ? AND valid_to = ?"
)
NEW_EVENT = "INSERT INTO event (sequence, time_us, type, entity) VALUES (?, ?, ?, ?)"
NEW_COMMAND = (
    "INSERT INTO command (command_id, first, last, actor, time_us) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (command_id) DO UPDATE SET last = excluded.last"
)


def bare(messages: list[StoredMessage], path: Path) -> float:
    """Events per second of what one would write by hand: decode, and a statement for each row."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    _prepare(connection, CLUSTER, True)
    execute = connection.execute
    started = time.perf_counter()
    for start in range(0, len(messages), BATCH):
        execute("BEGIN IMMEDIATE")
        for message in messages[start : start + BATCH]:
            n, envelope, e, _ = decode(message)
            us = microseconds(envelope.time)
            match e:
                case NodeJoined():
                    names = (e.node, e.uid, e.kind, e.underlay, e.announced, e.vtep_mac, e.site)
                    execute(NEW_NODE, (e.node, encode(Node(*names, n, n)).decode(), n, us))
                case RangeAllocated():
                    held = encode(Range(e.index, e.cidr, e.node, e.uid, n)).decode()
                    execute(NEW_RANGE, (e.index, e.node, held, "allocated", e.cursor_after, n, us))
                case NodeLeft():
                    execute(END_NODE, (n, us, e.node))
                case RangeDraining():
                    execute(END_RANGE, (n, us, e.index))
                    held = encode(Range(e.index, e.cidr, e.node, e.uid, e.epoch)).decode()
                    execute(NEW_RANGE, (e.index, e.node, held, "draining", None, n, us))
                case RangeQuarantined():
                    execute(END_RANGE, (n, us, e.index))
                    execute(RESTING_RANGE, (microseconds(e.until), e.watermark, n, us, e.index, n))
                case RangeFreed():
                    execute(END_RANGE, (n, us, e.index))
                case ClusterDefined():
                    fact = ("definition", e.cluster, "", message.body.decode(), n, us)
                    execute(
                        "INSERT INTO fact (kind, key, part, value, valid_from, from_us) VALUES (?,?,?,?,?,?)",
                        fact,
                    )
                case _:
                    raise RuntimeError(f"the history holds {type(e).__name__}")
            execute(NEW_EVENT, (n, us, envelope.type, e.entity))
            execute(NEW_COMMAND, (envelope.command_id, n, n, envelope.actor, us))
        execute("UPDATE checkpoint SET sequence = ?, chain = ?, time_us = ?", (n, envelope.chain, us))
        execute("COMMIT")
    took_s = time.perf_counter() - started
    connection.close()
    return len(messages) / took_s


async def _run() -> list[dict[str, Any]]:
    log = await history()
    messages = [message async for batch in log.read() for message in batch.messages]
    results: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as directory:
        for number in range(ROUNDS):
            base = bare(messages, Path(directory) / f"bare-{number}.db")
            mine = await ours(log, Path(directory) / f"ours-{number}")
            results.append((mine, base))
        store = await Store.open(Path(directory) / "ours-0", CLUSTER)
        file = sqlite3.connect(Path(directory) / "bare-0.db")
        for table in ("node", "range", "fact", "event", "command"):
            query = f"SELECT * FROM {table} ORDER BY 1, 2"
            told = await store.run(lambda c, query=query: sorted(c.execute(query), key=repr))
            if told != sorted(file.execute(query), key=repr):
                raise RuntimeError(f"the two did not write the same rows into {table}")
        file.close()
        await store.close()
    # The median of the paired ratios: one round's noise hits both sides of a pair.
    mine, base = sorted(results, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
    return [
        {
            "name": "projection into SQLite (verified, temporal rows)",
            "ours": mine,
            "baseline": base,
            "unit": "events/s",
            "ratio": mine / base,
            "target": 0.8,
            "better": "higher",
            "ok": mine / base >= 0.8,
        }
    ]


def run() -> list[dict[str, Any]]:
    """One row."""
    return asyncio.run(_run())
