"""One controller with its console per test, over a log in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.console.rig import Rig, running


class Background:
    """A rig on an event loop of its own thread, for tools that are not asynchronous."""

    def __init__(self, directory: Path, **options) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._directory = directory
        self._options = options
        self._failure: BaseException | None = None
        self.rig: Rig
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:  # reported by the test's thread
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _main(self) -> None:
        async with running(self._directory, **self._options) as rig:
            self.rig = rig
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        if self._failure:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        if self._failure:
            raise self._failure

    def do(self, coroutine):
        """Run a coroutine on the rig's loop; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def call(self, function, *arguments, **options):
        """Call a function on the rig's loop; its result."""

        async def work():
            return function(*arguments, **options)

        return self.do(work())


@pytest.fixture
def started(tmp_path) -> Iterator[Background]:
    """An empty cluster."""
    with Background(tmp_path) as background:
        yield background


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[Background]:
    """Five nodes, shared by the tests of a module that only look."""
    with Background(tmp_path_factory.mktemp("small")) as background:
        background.do(background.rig.define(5))
        background.do(background.rig.fill(5))
        yield background


@pytest.fixture(scope="module")
def browser():
    from tests.console.browser import chromium  # Playwright, which tests without a browser do without

    with chromium() as running:
        yield running
