"""Who is told to end ends, also in the middle of the bus client: it loses cancellations by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.client import Client

from events.bus.nats_fastpath import ReconnectingClient


async def test_a_cancellation_in_a_full_flush_queue_is_not_lost() -> None:
    client = ReconnectingClient()
    flusher = asyncio.create_task(asyncio.sleep(60))
    client._status = Client.CONNECTED
    client._flusher_task = flusher
    client._flush_queue = asyncio.Queue(maxsize=1)
    client._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
    flushing = asyncio.create_task(client._flush_pending())
    await asyncio.sleep(0)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    flusher.cancel()


async def test_a_deadline_in_a_full_flush_queue_is_a_time_out() -> None:
    client = ReconnectingClient()
    flusher = asyncio.create_task(asyncio.sleep(60))
    client._status = Client.CONNECTED
    client._flusher_task = flusher
    client._flush_queue = asyncio.Queue(maxsize=1)
    client._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client._flush_pending()
    flusher.cancel()


async def test_a_cancellation_that_meets_the_answer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def request(self: Client, *_: Any) -> str:
        return await asyncio.wait_for(answer, 60)

    monkeypatch.setattr(Client, "request", request)
    asking = asyncio.create_task(ReconnectingClient().request("subject"))
    await asyncio.sleep(0)
    answer.set_result("an answer")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_cleaning_up_after_a_cancellation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task was asked to end before; what it does to end in order is not disturbed."""

    async def request(self: Client, *_: Any) -> str:
        await asyncio.sleep(0)
        return "an answer"

    monkeypatch.setattr(Client, "request", request)
    said = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            said.append(await ReconnectingClient().request("subject"))

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["an answer"]
