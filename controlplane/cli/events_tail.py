"""``isthmus events tail``: the log as it is, read straight from the bus, chain verified on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from events.cli.numbers import SEQUENCE
from events.cli.options import BusContext, awaited, bus_options, json_option
from events.cli.tables import console, fields_line
from events.errors import Usage

if TYPE_CHECKING:
    from events.codec import Recorded


@click.group()
def events() -> None:
    """Look at the log of events."""


@events.command()
@bus_options
@click.option(
    "-n", "--lines", type=SEQUENCE, default=20, show_default=True, help="How many of the last events."
)
@click.option("--after", type=SEQUENCE, help="Begin with the event after this sequence instead.")
@click.option("--from", "begin", type=SEQUENCE, help="Begin with this sequence instead.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
@click.option(
    "--type", "prefix", default="", help="Only types that begin so, for example node. or range.freed."
)
@json_option
@awaited
async def tail(  # noqa: PLR0917  click passes options by name
    context: BusContext,
    lines: int,
    after: int | None,
    begin: int | None,
    follow: bool,
    prefix: str,
    as_json: bool,
) -> None:
    """Print the last events, and with --follow each new one.

    With --json each event is one line: sequence, time, type, entity, actor, command, event.

    \b
    isthmus events tail
    isthmus events tail --follow --type node.
    isthmus events tail --from 6,121
    isthmus events tail --after 0 --json | jq .type
    """
    from events.bus.connection import connect
    from events.jetstream.log import JetStreamLog
    from events.reading import verified

    if begin is not None:
        if after is not None:
            raise Usage("usage", "--after and --from say the same in two ways: give one")
        after = max(0, begin - 1)

    async def lost() -> None:
        if following:
            click.echo("note: the connection to the bus is lost; waiting for it", err=True)

    async def again() -> None:
        click.echo("note: connected again; nothing is left out", err=True)

    following = follow
    client = await connect(context.bus, name="isthmus-tail", on_disconnect=lost, on_reconnect=again)
    try:
        event_log = await JetStreamLog.open(client, context.cluster)
        start = after if after is not None else max(0, (await event_log.head()).sequence - lines)
        show, shown = _json_line if as_json else _Printer(), 0
        # The first one's predecessor is not read; from it on, each link is checked.
        async for batch in verified(event_log, start, follow=follow):
            for recorded in batch.events:
                if recorded.envelope.type.startswith(prefix):
                    show(recorded)
                    shown += 1
        if not shown:
            end = (await event_log.head()).sequence
            which = (
                f"no event after {start:,} is of a type that begins with {prefix}"
                if prefix and start < end
                else (f"no event after {start:,}")
            )
            click.echo(f"note: {which}; the log ends at event {end:,}", err=True)
    finally:
        following = False
        await client.close()


def _body(recorded: Recorded) -> dict[str, Any]:
    import msgspec

    from events.codec import UnknownEvent

    event = recorded.event
    if isinstance(event, UnknownEvent):
        try:
            return dict(msgspec.json.decode(event.body, type=dict[str, Any]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # a parked event may hold anything
            return {"body": event.body.decode("utf-8", "replace")}
    return dict(msgspec.to_builtins(event))


def _json_line(recorded: Recorded) -> None:
    import msgspec

    envelope = recorded.envelope
    line = {
        "sequence": recorded.sequence,
        "time": envelope.time,
        "type": envelope.type,
        "entity": recorded.event.entity,
        "actor": envelope.actor,
        "command": envelope.command_id,
        "traceparent": envelope.traceparent,
        "chain": envelope.chain,
        "event": _body(recorded),
    }
    click.echo(msgspec.json.encode(line).decode())


class _Printer:
    """One event per line; the columns are wide enough for most."""

    def __init__(self) -> None:
        self._console = console()

    def __call__(self, recorded: Recorded) -> None:
        from rich.text import Text

        envelope = recorded.envelope
        body = _body(recorded)
        # The entity has a column of its own.
        shown = [
            key for key in ("node", "uid", "cluster", "cidr", "name") if body.get(key) == recorded.event.entity
        ]
        detail = fields_line(body, hidden=shown)
        line = Text.assemble(
            (f"{recorded.sequence:>7} ", "bold"),
            (f"{envelope.time:%Y-%m-%d %H:%M:%S.%f}"[:-3] + "Z ", "dim"),
            (f"{envelope.type.rsplit('.', 1)[0]:<22} ", "cyan"),
            (f"{recorded.event.entity:<20} ", "green"),
            f"{detail} ",
            (f"({envelope.actor})", "dim"),
        )
        self._console.print(line, soft_wrap=True)
