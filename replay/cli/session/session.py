"""An opened log with the caller's time zone and "now": what a command works with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING

import click

from replay.cli.session.options import LogSource

if TYPE_CHECKING:
    from controlplane.controller.publishing.checkpoints import Checkpoint
    from events.protocol.pods import PodPage, PodsView
    from replay.history import History, Point
    from replay.queries.stamp import Stamp
    from replay.queries.states import States


class Session:
    """An opened history with the caller's zone and moment. ``warnings`` go to standard error at the end."""

    def __init__(self, history: History, source: LogSource, tz: tzinfo) -> None:
        self.history = history
        self.source = source
        self.tz = tz
        self.now = datetime.now(UTC)

    async def point(self, text: str) -> Point:
        """A WHEN as a place in this history; says on standard error when it lies outside of what is known.

        Raises Usage, Refused(not_in_history). Cancelled, it leaves nothing behind.
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
            await self._say_ambiguous(point)
        return point

    async def _say_ambiguous(self, point: Point) -> None:
        later = await self.history.later_before(point)
        if later is not None:
            click.echo(
                f"note: recorded times run backwards here (a clock was set): event {later.sequence:,} is of "
                f"{self.show(later.recorded_at)}, event {point.sequence:,} behind it of "
                f"{self.show(point.recorded_at)}; answered as of the last one by sequence",
                err=True,
            )

    def states(self) -> States:
        """States of the history, by the read model where one was named."""
        from events.errors import VerificationFailed
        from replay.queries.states import ReadModel, States

        model = None
        if self.source.read_model:
            try:
                model = ReadModel.open(self.source.read_model, self.history.cluster)
            except VerificationFailed as error:
                _note(f"{error.message}: the log is folded")
        return States(self.history, model, on_damage=_note)

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


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


@asynccontextmanager
async def opened(source: LogSource, *, tolerant: bool = False) -> AsyncIterator[Session]:
    """Open the history that the options name. Raises Unavailable, Refused, VerificationFailed, Usage.

    With ``tolerant`` an archive whose manifest is damaged is opened all the same.
    A cancellation inside of the block closes it, too.
    """
    from events.errors import VerificationFailed
    from replay.when import zone

    tz = zone(source.tz)
    if source.archives:
        from replay.archive.reader import ArchiveLog
        from replay.archive_index import archive_history

        try:
            archive = ArchiveLog(*source.archives)
        except VerificationFailed:
            if not tolerant:
                raise
            archive = ArchiveLog(*source.archives, by_manifest=False)
        try:
            history = await archive_history(archive)
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
            yield Session(history, source, tz)
        finally:
            archive.close()
        return
    from events.bus.connection import connect
    from events.jetstream.log import JetStreamLog
    from replay.stream_index import stream_history

    client = await connect(source.context.bus, name="isthmus-replay")
    try:
        try:
            log = await JetStreamLog.open(client, source.context.cluster)
        except VerificationFailed:  # a forged last event: to be looked at, not to be stopped by
            log = JetStreamLog(client, source.context.cluster)
        yield Session(await stream_history(log), source, tz)
    finally:
        await client.close()


async def pods_of(source: LogSource, address: str, node: str) -> PodsView:
    """What is kept of the pods that had an address on a node. Raises IsthmusError when nobody can tell.

    Cancelled, it leaves nothing behind.
    """
    from events.cli.options import controller
    from events.protocol.pods import PodsView, ShowPods

    async with controller(source.context) as client:
        return await client.ask(ShowPods(address=address, node=node), PodsView, timeout_s=3.0)


async def pod_pages(source: LogSource, after: int) -> AsyncIterator[PodPage]:
    """What is kept of pods behind a place, page by page: of the live cluster, or of the archives that are read.

    Raises IsthmusError when nobody can tell. Cancelled, it leaves nothing behind.
    """
    from events.cli.options import controller
    from events.protocol.pods import ListPods, PodPage

    if source.archives:
        from replay.archive.pods import page_of
        from replay.archive.reader import ArchiveLog

        archive = ArchiveLog(*source.archives)
        try:
            yield page_of(archive, after)
        finally:
            archive.close()
        return
    async with controller(source.context) as client:
        while True:
            page = await client.ask(ListPods(after=after), PodPage, timeout_s=5.0)
            if page.last < after:  # the stream was made anew: its places begin again
                after = 0
                continue
            yield page
            if not page.more or not page.facts:
                return
            after = page.facts[-1].sequence


async def controllers_checkpoints(source: LogSource) -> list[Checkpoint]:
    """The live controller's signed checkpoints; none when no controller answers.

    Cancelled, it leaves nothing behind.
    """
    from controlplane.controller.publishing.checkpointer import CheckpointList, ListCheckpoints
    from events.cli.options import controller
    from events.errors import Unavailable

    try:
        async with controller(source.context) as client:
            return list((await client.ask(ListCheckpoints(), CheckpointList, timeout_s=2.0)).checkpoints)
    except Unavailable:
        return []
