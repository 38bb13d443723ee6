"""Running a controller in the foreground: readiness, signals, a clean stop, one line of facts.

Shared by ``isthmus up`` and ``isthmus controller``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from controlplane.controller.controller import Controller

if TYPE_CHECKING:
    from controlplane.cli.controller_process import ControllerProcess

T = TypeVar("T")

GC_ALLOCATIONS = 50_000
"""New containers between two collections. Python's 700 cost a tenth of the time under load, for cycles
that hardly exist here; memory for this many is some ten megabytes."""


def setup_logging(level: str, *, instance: str = "") -> None:
    """Log lines on standard error; ISTHMUS_LOG_LEVEL beats ``level``. Raises Usage(usage)."""
    from events.telemetry.logs import configure_logging

    configure_logging("controller", instance=instance, environ={"ISTHMUS_LOG_LEVEL": level, **os.environ})


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed (about a third less time per command), else on asyncio's loop."""
    gc.set_threshold(GC_ALLOCATIONS, 25, 25)
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def serve(
    controller: Controller,
    on_ready: Callable[[], Awaitable[None]],
    *,
    leading: bool,
    failed: Awaitable[BaseException] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT. ``on_ready`` is called once the log is folded (and this one leads).

    ``failed`` ends with the reason when something that the controller needs has gone for good. Raises what
    ended the controller. Cancelled, the controller is stopped first.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, controller.stopping)
    running = asyncio.create_task(controller.run(), name="controller")
    starting = asyncio.create_task(_start(controller, on_ready, leading=leading), name="start")
    watching = asyncio.create_task(_watch(failed), name="watch")
    try:
        done, _ = await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting in done:
            starting.result()
            done, _ = await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching in done:
            watching.result()
        await running
    finally:
        for task in (starting, watching):
            task.cancel()
        if not running.done():
            controller.stopping()
        await asyncio.gather(running, starting, watching, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _start(controller: Controller, on_ready: Callable[[], Awaitable[None]], *, leading: bool) -> None:
    await controller.ready(leading=leading)
    gc.collect()
    gc.freeze()  # the folded state lives as long as the process; no collection need walk it
    await on_ready()


async def _watch(failed: Awaitable[BaseException] | None) -> None:
    if failed is None:
        await asyncio.Event().wait()
        return
    raise await failed


def say(text: str) -> None:
    """One line, at once: whoever waits for it reads a pipe."""
    click.echo(text)
    sys.stdout.flush()


def standstill_line(controller: Controller) -> None:
    """That the log cannot be followed, if so; the controller runs all the same and answers questions."""
    if controller.replica.halted is not None:
        say(f"stands still  {controller.replica.halted.message}; commands are refused")


def console_lines(running: ControllerProcess) -> None:
    """Where the console is, or why it is not."""
    if running.address:
        say(f"console     {running.address}")
    else:
        say(f"console     none: {running.why_not}")
