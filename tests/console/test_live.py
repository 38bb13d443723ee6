"""The stream of frames: what a page that has just been opened is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from controlplane.console import live_feed
from controlplane.console.live_feed import Frame
from tests.console.rig import Rig, join, running
from tests.waiting import until


async def frames(rig: Rig) -> AsyncIterator[Frame]:
    async with aclosing(rig.feed.stream()) as stream:
        async for data in stream:
            if data.startswith(b"event: frame\ndata: "):
                yield msgspec.json.decode(data.removeprefix(b"event: frame\ndata: "), type=Frame)


async def test_who_was_behind_while_nobody_listened_is_behind_in_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_feed, "SETTLED_S", 0.2)
    async with running(tmp_path) as rig, asyncio.timeout(30):
        await rig.define(5)
        await rig.fill(5)
        listening = frames(rig)
        reading = asyncio.ensure_future(anext(listening))
        await until(lambda: rig.report_all() or reading.done())
        following = rig.source.replica.changes.statistics()["subscribers"]
        await listening.aclose()  # type: ignore[attr-defined]
        await until(lambda: rig.source.replica.changes.statistics()["subscribers"] < following)
        await rig.send(join(6))  # nobody listens, and five agents do not have it
        written = rig.source.head_time
        assert written is not None
        await until(lambda: (datetime.now(UTC) - written).total_seconds() > 0.5)
        listening = frames(rig)
        reading = asyncio.ensure_future(anext(listening))
        await until(
            lambda: rig.report("vm-1", rig.replica.state.sequence, agent_state="degraded") or reading.done()
        )
        first = reading.result()
        await listening.aclose()  # type: ignore[attr-defined]
    assert first.agents_behind == 4
