"""What every replay command shares: where the log comes from, the time zone, opening, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, tzinfo
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from events.cli.options import BusContext, bus_options, suggesting

if TYPE_CHECKING:
    from replay.history import History, Point
    from replay.queries.stamp import Stamp
    from replay.queries.states import States

Function = TypeVar("Function", bound=Callable[..., Any])

_SHOW_AFTER_S = 0.7


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The options as given."""

    context: BusContext
    archives: tuple[str, ...]
    tz: str
    read_model: str


def source_options(function: Function) -> Function:
    """Add ``--archive``, the bus options, ``--tz``, ``--read-model``; the command gets ``source: Source``."""

    @click.option(
        "--archive",
        "archives",
        multiple=True,
        metavar="FILE",
        envvar="ISTHMUS_ARCHIVE",
        help="Read this archive instead of the bus. Repeat for files that continue one another.",
    )
    @bus_options
    @click.option(
        "--tz",
        default="local",
        envvar="ISTHMUS_TZ",
        metavar="ZONE",
        help="Zone of times read and shown: local, UTC, +08:00, Asia/Shanghai [local].",
    )
    @click.option(
        "--read-model",
        default="",
        envvar="ISTHMUS_READ_MODEL",
        metavar="DIR",
        help="A controller's read model (its data directory), to answer as-of questions without folding.",
    )
    @wraps(function)
    def wrapper(
        *args: Any, archives: tuple[str, ...], context: BusContext, tz: str, read_model: str, **rest: Any
    ) -> Any:
        source = Source(context=context, archives=archives, tz=tz, read_model=read_model)
        return function(*args, source=source, **rest)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


class Word(click.Choice[str]):
    """A choice that names the nearest word when none fits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(
                suggesting(error, str(value), self.choices, ctx).message, ctx=ctx, param=param
            ) from None


class TimesAsArguments(click.Command):
    """A command whose arguments are moments: ``-2h`` is one, not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        takes = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag and not param.count
            for name in param.opts
        }
        # With a blank before it, which no WHEN minds, it is no option to click.
        return super().parse_args(
            ctx,
            [
                f" {text}" if text[:1] == "-" and text[1:2].isdigit() and before not in takes else text
                for before, text in zip(["", *args], args, strict=False)
            ],
        )


def at_option(function: Function) -> Function:
    """Add ``--at WHEN``; the command receives ``at: str``."""
    return click.option(
        "--at", default="now", show_default=True, metavar="WHEN", help="The moment asked about."
    )(function)


class Asked:
    """An opened history with the caller's zone and moment. ``warnings`` go to standard error at the end."""

    def __init__(self, history: History, source: Source, tz: tzinfo) -> None:
        self.history = history
        self.source = source
        self.tz = tz
        self.now = datetime.now(UTC)

    async def point(self, text: str) -> Point:
        """A WHEN as a place in this history; says on standard error when it lies outside of what is known.

        Raises Usage, Refused(not_in_history).
        """
        from replay.when import parse

        when = parse(text, now=self.now, tz=self.tz)
        point = await self.history.resolve(when)
        if when.moment is not None:
            asked = f"note: {when.text!r} is {self.show(when.moment)}, "
            if point.sequence <= self.history.start:
                click.echo(f"{asked}before event {self.history.start + 1:,}, the first one here", err=True)
            elif when.moment > self.now:
                click.echo(
                    f"{asked}still to come: answered as of event {point.sequence:,}, the last one", err=True
                )
            elif self.source.archives and point.sequence == self.history.end:
                click.echo(
                    f"{asked}and {self.history.source} ends with event {point.sequence:,} of "
                    f"{self.show(point.recorded_at)}: what came after it is not known here",
                    err=True,
                )
        return point

    def states(self) -> States:
        """States of the history, by the read model where one was named."""
        from replay.queries.states import ReadModel, States

        model = None
        if self.source.read_model:
            model = ReadModel.open(self.source.read_model, self.history.cluster)
        return States(self.history, model)

    def show(self, moment: datetime | None) -> str:
        """A moment in the caller's zone, with the zone; a dash for none."""
        from replay.when import show

        return show(moment, self.tz) if moment is not None else "–"

    def when(self, stamp: Stamp) -> str:
        """The server's time of an event, and its own time where the two differ."""
        from replay.queries.stamp import NOTICEABLE_S

        text = self.show(stamp.recorded_at)
        if abs(stamp.skew_s) > NOTICEABLE_S:
            text += f" (decided {self.show(stamp.time)})"
        return text

    def at(self, point: Point) -> str:
        """A point for the eye: ``event 4,711 · 2026-03-02 14:00:00.000+08:00``, and the time asked for."""
        if point.recorded_at is None:
            return f"the beginning, before event {point.sequence + 1:,}"
        asked = f", the last one by {self.show(point.moment)}" if point.moment else ""
        return f"event {point.sequence:,} · {self.show(point.recorded_at)}{asked}"


@asynccontextmanager
async def opened(source: Source) -> AsyncIterator[Asked]:
    """Open the history that the options name. Raises Unavailable, Refused, VerificationFailed, Usage."""
    from replay.history import History
    from replay.when import zone

    tz = zone(source.tz)
    if source.archives:
        from replay.archive.reader import ArchiveLog

        archive = ArchiveLog(*source.archives)
        try:
            history = await History.open(archive)
            if not archive.finished:
                click.echo(
                    f"note: {history.source} has no end (an interrupted export?); "
                    f"read up to event {history.end:,}",
                    err=True,
                )
            if history.start:
                click.echo(
                    f"note: {history.source} holds events {history.start + 1:,} to {history.end:,} only"
                    + (", and the state before them" if history.base is not None else ""),
                    err=True,
                )
            yield Asked(history, source, tz)
        finally:
            archive.close()
        return
    from events.bus.connection import connect
    from events.errors import VerificationFailed
    from events.jetstream.log import JetStreamLog

    client = await connect(source.context.bus, name="isthmus-replay")
    try:
        try:
            log = await JetStreamLog.open(client, source.context.cluster)
        except VerificationFailed:  # a forged last event: to be looked at, not to be stopped by
            log = JetStreamLog(client, source.context.cluster)
        yield Asked(await History.open(log), source, tz)
    finally:
        await client.close()


@contextmanager
def progress(what: str, total: int, *, start: int = 0, unit: str = "events") -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left, for a person, and only once it takes long.

    The block gets a function that is called with the last sequence done.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    began = time.monotonic()
    shown: list[Any] = []

    def tick(done: int) -> None:
        if not shown:
            if time.monotonic() - began < _SHOW_AFTER_S:
                return
            shown.append(_Bar(what, total - start, unit))
        shown[0].update(done - start)

    try:
        yield tick
    finally:
        if shown:
            shown[0].stop()


class _Bar:
    """A rich progress bar; the rate is since the beginning."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._began = time.monotonic()
        self._unit = unit
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total, rate="")
        self._progress.start()
        self._first: int | None = None

    def update(self, done: int) -> None:
        """Move on to ``done``."""
        if self._first is None:
            self._first = done
        took = time.monotonic() - self._began
        rate = (done - self._first) / took if took > 0.2 else 0.0
        self._progress.update(self._task, completed=done, rate=f"{rate:,.0f} {self._unit}/s" if rate else "")

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()
