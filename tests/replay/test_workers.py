"""Worker processes and Ctrl-C, which a terminal gives to all of them at any moment."""

from __future__ import annotations

import os
import signal

from replay.verification.workers import Workers


async def test_a_worker_that_has_only_just_been_started_is_left_alone_by_ctrl_c() -> None:
    taken: list[int] = []
    async with Workers(1) as workers:
        assert workers._pool is not None
        for pid in workers._pool._processes:
            os.kill(pid, signal.SIGINT)
        await workers.put(taken.append, abs, -1)
    assert taken == [1]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
