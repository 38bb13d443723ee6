"""The stream of changes: what the console needs to stay current without asking.

One task turns stored events and agents' reports into frames, at most :data:`FRAMES_PER_S` a second,
and encodes each once for all listeners. A listener that does not keep up is told to start over; the
controller never waits for a browser.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from controlplane.changes import Lagged
from controlplane.console.as_of import SETTLED_S
from controlplane.console.inspector import Inspector
from controlplane.console.presenters import behind, conditions_of, event_row, node_row
from controlplane.console.schemas import EventRow, NodeRow
from controlplane.controller.agents.convergence import Convergence
from controlplane.controller.agents.records import Kernel
from controlplane.controller.agents.reports import Reports, agent_state
from controlplane.controller.presenters import pool_view
from events.codec import Recorded
from events.protocol.queries import Condition, PoolView
from events.types import RangeAllocated, RangeDraining, RangeFreed, RangeQuarantined

log = logging.getLogger("isthmus.http")

FRAMES_PER_S = 5.0
PULSE_S = 1.0
LISTENERS_MAX = 64
QUEUE_FRAMES = 32
TOUCHED_MAX = 2000
"""Most changed nodes or ranges of one frame; beyond it the listener is told to fetch everything again."""
EVENTS_SHOWN = 40
CONVERGENCE_SHOWN = 24
SWEEP_S = 5.0


Moved = tuple[str, str, int, Kernel, int]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What changed up to ``head``. ``ranges`` are [index, letter (f for free), node, epoch].

    With ``resync`` too much changed for a frame: fetch overview, space and nodes again.
    ``agents`` are [node, state, applied, kernel, kernel_at] of those whose reports changed. ``conditions``
    and ``alarms`` are there when they changed.
    """

    head: int
    at: str
    resync: bool = False
    pool: PoolView | None = None
    nodes: list[NodeRow] = []
    gone: list[str] = []
    ranges: list[tuple[int, str, str, int]] = []
    events: list[EventRow] = []
    conditions: list[Condition] | None = None
    convergence: list[Convergence] = []
    agents: list[Moved] = []
    agents_behind: int = 0
    watermark: int = 0
    settled: int = 0
    alarmed: bool = False
    clb_changed: bool = False


class LiveFeed:
    """Makes frames and hands them to listeners. :meth:`run` is owned by the server."""

    def __init__(self, source: Inspector) -> None:
        self._source = source
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._known: dict[str, tuple[str, int, Kernel, int]] = {}
        self._heard: dict[str, None] = {}  # uids that have reported since the last frame
        self._swept_s = float("-inf")
        self._heads: deque[tuple[float, int]] = deque()
        self._told = 0
        self._conditions: list[Condition] = []
        self._alarms = 0
        self._joined = asyncio.Event()

    @property
    def listeners(self) -> int:
        """Open streams."""
        return len(self._listeners)

    async def run(self) -> None:
        """Make frames until cancelled. Without a listener nothing is computed."""
        try:
            while True:
                await self._joined.wait()
                try:
                    await self._follow()
                except (Lagged, StopAsyncIteration):
                    self._resync()
                except Exception:  # a defect of a frame must not silence all that follow
                    log.exception("a frame of the live stream failed")
                    self._resync()
                    await asyncio.sleep(PULSE_S)
        finally:
            self.drop()

    def drop(self) -> None:
        """End every stream; the listeners connect again by themselves."""
        for queue in list(self._listeners):
            self._end(queue)

    async def _follow(self) -> None:
        """Frames from now on, as long as anybody listens."""
        subscription = self._source.replica.changes.subscribe()
        stop_hearing = self._source.hear(self._hear)
        self._swept_s = float("-inf")
        self._heads.clear()  # what was noted when somebody last listened says nothing of the meantime
        reader = asyncio.create_task(anext(subscription), name="console-changes")
        try:
            while self._listeners:
                done, _ = await asyncio.wait({reader}, timeout=PULSE_S)
                events: list[Recorded] = []
                if done:
                    events = reader.result()
                    reader = asyncio.create_task(anext(subscription), name="console-changes")
                self._send(self._frame(events))
                if done:
                    await asyncio.sleep(1 / FRAMES_PER_S)
            self._joined.clear()
        finally:
            stop_hearing()
            subscription.close()
            reader.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Lagged):
                await reader

    def _hear(self, uid: str) -> None:
        self._heard[uid] = None

    def _frame(self, events: list[Recorded]) -> Frame | None:
        source, state = self._source, self._source.state
        reports = source.reports()
        agents = self._moved_agents(reports)
        convergence = source.latest_convergence(CONVERGENCE_SHOWN)
        settled = self._settled()
        moment = source.head_time
        raised = source.observability.recorder.alarms_raised
        alarmed, self._alarms = raised != self._alarms, raised
        found = (
            [*source.own_conditions(), *conditions_of(state, reports)]
            if agents or events or alarmed
            else self._conditions
        )
        changed = found != self._conditions
        self._conditions = found
        common = {
            "head": state.sequence,
            "at": moment.isoformat() if moment else "",
            "convergence": convergence,
            "agents": agents,
            "agents_behind": behind(state, reports, settled),
            "watermark": source.watermark,
            "settled": settled,
            "alarmed": alarmed,
            "conditions": found if changed or events else None,
        }
        if not events:
            tell = agents or changed or alarmed or settled != self._told
            self._told = settled
            return Frame(**common) if tell else None  # type: ignore[arg-type]  # one dict for all frames
        nodes: dict[str, None] = {}
        ranges: dict[int, None] = {}
        clb = False
        for _, _, event, _ in events:
            if isinstance(event, (RangeAllocated, RangeDraining, RangeQuarantined, RangeFreed)):
                ranges[event.index] = None
                nodes[getattr(event, "node", "")] = None
            elif event.aggregate == "node":
                nodes[event.entity] = None
            clb = clb or event.aggregate in {"clb", "entry", "cluster"}
        nodes.pop("", None)
        resync = (
            len(nodes) > TOUCHED_MAX
            or len(ranges) > TOUCHED_MAX
            or any(e.event.aggregate == "cluster" for e in events)
        )
        rows, gone, cells = [], [], []
        if not resync:
            for name in nodes:
                node = state.nodes.get(name)
                if node is None:
                    gone.append(name)
                else:
                    rows.append(node_row(state, node, reports, state.sequence))
            for index in ranges:
                entry = state.ranges.get(index)
                phase = state.phase_of(index)
                cells.append(
                    (index, (phase or "free")[0], entry.node if entry else "", entry.epoch if entry else 0)
                )
        return Frame(
            **common,  # type: ignore[arg-type]
            resync=resync,
            pool=pool_view(state),
            nodes=rows,
            gone=gone,
            ranges=cells,
            events=[event_row(recorded, with_data=False) for recorded in reversed(events[-EVENTS_SHOWN:])],
            clb_changed=clb,
        )

    def _moved_agents(self, reports: Reports) -> list[Moved]:
        """Agents whose state, applied sequence or kernel differs from what listeners were last told.

        Looked at are those that have reported since; every :data:`SWEEP_S` all, for who fell silent.
        """
        state, known = self._source.state, self._known
        uids: Iterable[str] = self._heard
        if time.monotonic() - self._swept_s > SWEEP_S:
            self._swept_s = time.monotonic()
            uids = list(state.by_uid)
        self._heard = {}
        moved: list[Moved] = []
        later: dict[str, None] = {}
        for uid in uids:
            node = state.nodes.get(state.by_uid.get(uid, ""))
            observed = reports.of(uid)
            if node is None or observed is None:
                continue
            if len(moved) >= TOUCHED_MAX:
                later[uid] = None
                continue
            says = agent_state(state, node, reports), observed.applied, observed.kernel, observed.kernel_at
            if known.get(node.name) != says:
                known[node.name] = says
                moved.append((node.name, *says))
        self._heard.update(later)
        if len(known) > 2 * len(state.nodes) + TOUCHED_MAX:
            self._known = {name: said for name, said in known.items() if name in state.nodes}
        return moved

    def _settled(self) -> int:
        """The head as it was :data:`SETTLED_S` ago."""
        now, head = time.monotonic(), self._source.state.sequence
        heads = self._heads
        if not heads:
            moment = self._source.head_time  # nobody listened: the head may have been there for long
            age_s = (datetime.now(UTC) - moment).total_seconds() if moment is not None else 0.0
            heads.append((now - max(0.0, age_s), head))
        elif heads[-1][1] != head:
            heads.append((now, head))
        while len(heads) > 1 and heads[1][0] < now - SETTLED_S:
            heads.popleft()
        return heads[0][1] if heads[0][0] < now - SETTLED_S else 0

    def _send(self, frame: Frame | None) -> None:
        if frame is None:
            return
        data = b"event: frame\ndata: " + msgspec.json.encode(frame) + b"\n\n"
        for queue in list(self._listeners):
            try:
                queue.put_nowait(data)
            except asyncio.QueueFull:
                self._end(queue)

    def _resync(self) -> None:
        state = self._source.state
        self._send(Frame(head=state.sequence, at="", resync=True))

    def _end(self, queue: asyncio.Queue[bytes | None]) -> None:
        """Close a stream; the browser connects again and starts from a fresh picture."""
        self._listeners.discard(queue)
        while queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    async def stream(self) -> AsyncIterator[bytes]:
        """One listener's bytes, as an event stream, until it goes away. Cancelled, its queue is given up."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_FRAMES)
        if len(self._listeners) >= LISTENERS_MAX:
            yield b"retry: 10000\nevent: full\ndata: {}\n\n"
            return
        self._listeners.add(queue)
        self._joined.set()
        try:
            yield b"retry: 1500\nevent: hello\ndata: {}\n\n"
            while True:
                try:
                    async with asyncio.timeout(15):
                        data = await queue.get()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if data is None:
                    return
                yield data
        finally:
            self._listeners.discard(queue)
