"""The contract on the log in memory."""

from __future__ import annotations

import pytest

from events.log import EventLog, LogReader
from events.memory import MemoryLog
from tests.contract.samples import CLUSTER, fill
from tests.contract.suite import LogContract, ReaderOver


@pytest.fixture
def log() -> EventLog:
    return MemoryLog(CLUSTER)


@pytest.fixture
def reader_over(log: EventLog) -> ReaderOver:
    async def make(count: int) -> LogReader:
        await fill(log, count)
        return log

    return make


class TestMemoryLog(LogContract):
    """Everything in the suite."""
