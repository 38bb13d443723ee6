"""What the operator's commands share: overrides, dry runs, sending and showing what was written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from controlplane.cluster.addressing.plan import PODS_UNUSABLE
from controlplane.console.address import CONSOLE
from events.cli.hints import hint, reaching
from events.cli.listen import METAVAR, Listen
from events.cli.options import BusContext, bus_options, controller, json_option, parse_pairs, run
from events.cli.tables import coloured, escaped, print_json, print_table
from events.protocol.commands import Command, CommandReply, Override
from events.protocol.queries import Condition, ListNodes, ListRanges, NodePage, Query, RangePage
from events.types.releases import to_keep_to

if TYPE_CHECKING:
    from events.bus.client import ControllerClient

T = TypeVar("T", bound=msgspec.Struct)
Page = TypeVar("Page", NodePage, RangePage)
Function = TypeVar("Function", bound=Callable[..., Any])


def override_option(function: Function) -> Function:
    """Add ``--override CODE=REASON``; the command receives ``overrides: tuple[Override, ...]``."""

    @click.option(
        "--override",
        "override",
        multiple=True,
        metavar="CODE=REASON",
        help="Accept an overlap that the check CODE finds; the reason is recorded for ever. Repeatable.",
    )
    @wraps(function)
    def wrapper(*args: Any, override: tuple[str, ...], **rest: Any) -> Any:
        pairs = parse_pairs(override, "--override")
        overrides = tuple(Override(code=code, reason=reason) for code, reason in pairs.items())
        return function(*args, overrides=overrides, **rest)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


def write_options(function: Function) -> Function:
    """What every command that writes takes: ``--dry-run``, ``--command-id``, ``--json`` and the bus's options.

    The command receives ``context: BusContext``, ``how: dict`` (for :func:`send`) and ``as_json: bool``.
    """
    function = json_option(bus_options(function))

    @click.option("--dry-run", is_flag=True, help="Show the events that would be written; write nothing.")
    @click.option(
        "--command-id",
        default="",
        metavar="ID",
        help="Repeat a command whose answer was lost: the same id has no second effect.",
    )
    @wraps(function)
    def wrapper(*args: Any, dry_run: bool, command_id: str, **rest: Any) -> Any:
        return function(*args, how={"dry_run": dry_run, "command_id": command_id}, **rest)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


PODS_PER_NODE = 256
"""What `up`, `cluster define` and `plan` take unless told otherwise; holds a kubelet's usual 110 pods."""


def usable_pods_option(function: Function) -> Function:
    """Add ``--usable-pods``; the command receives ``usable_pods: int | None``, see :func:`addresses_for`."""
    return click.option(
        "--usable-pods",
        type=click.IntRange(1, 2**24),
        metavar="N",
        help="Instead of --pods: pods that must find room on a node; the addresses follow (64 hold 61 pods).",
    )(function)


def addresses_for(pods: int, usable_pods: int | None) -> int:
    """The addresses that a node needs: ``pods`` as given, or what ``usable_pods`` take."""
    return pods if usable_pods is None else usable_pods + PODS_UNUSABLE


def http_option(function: Function) -> Function:
    """Add ``--http``; the command receives ``http: str``."""
    return click.option(
        "--http",
        envvar="ISTHMUS_HTTP",
        default=CONSOLE,
        show_default=True,
        type=Listen(),
        metavar=METAVAR,
        help="Where the console and the API are served; beyond loopback ISTHMUS_HTTP_TOKEN must be set.",
    )(function)


def release_of(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """A release to go back to, for click. Raises click.BadParameter."""
    try:
        return to_keep_to(value) if value else ""
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def compatible_option(function: Function) -> Function:
    """Add ``--compatible-with``; the command receives ``compatible_with: str``, a release or nothing."""
    return click.option(
        "--compatible-with",
        envvar="ISTHMUS_COMPATIBLE_WITH",
        default="",
        metavar="RELEASE",
        callback=release_of,
        help="Write nothing that this release cannot follow, so that going back to it stays possible.",
    )(function)


def send(context: BusContext, command: Command, how: dict[str, Any]) -> CommandReply:
    """Send a command and wait for its stored effect. Raises IsthmusError."""

    async def main() -> CommandReply:
        async with controller(context) as client:
            return await client.send(command, **how)

    return run(main())


def ask(context: BusContext, query: Query, answer: type[T]) -> T:
    """Ask the controllers, and wait for the answer. Raises IsthmusError."""

    async def main() -> T:
        async with controller(context) as client:
            return await client.ask(query, answer)

    return run(main())


async def pages(
    client: ControllerClient, query: ListNodes | ListRanges, answer: type[Page]
) -> AsyncIterator[Page]:
    """Every page of a list from ``query`` on; later ones may be newer. Cancelled, it leaves nothing behind."""
    after: str | int | None = query.after
    while after is not None:
        page = await client.ask(msgspec.structs.replace(query, after=after), answer)
        yield page
        after = page.next_after


def show_written(reply: CommandReply, sentence: str, *, as_json: bool) -> None:
    """Say what a command did: one sentence, and in a dry run the events that it would write."""
    if as_json:
        print_json(reply)
        return
    if reply.dry_run:
        print_table(
            ("event", "content"),
            [(item.type, content(item.event)) for item in reply.events],
            title=f"Dry run at sequence {reply.sequence}: nothing was written",
            empty="Dry run: nothing would be written",
        )
        return
    if reply.duplicate:
        sentence = f"{sentence} (this command had been carried out before)"
    elif not reply.events:
        sentence = f"{sentence} (already so; nothing was written)"
    click.echo(f"{sentence} [sequence {reply.sequence}]")


def content(event: Any) -> str:
    """An event's fields on one line, the empty ones left out."""
    fields = msgspec.json.decode(event) if isinstance(event, msgspec.Raw) else event
    return "  ".join(
        f"{key}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for key, value in fields.items()
        if value not in ("", None, [], {})
    )


def show_conditions(conditions: Sequence[Condition], *, context: BusContext) -> None:
    """Conditions as lines, the most urgent first, each with the command that helps."""
    if not conditions:
        click.echo("Conditions: none")
        return
    styles = {"critical": "red", "warning": "yellow", "info": "cyan"}
    for item in sorted(conditions, key=lambda one: list(styles).index(one.severity)):
        label = f"{item.severity:>8}"
        label = (
            click.style(label, fg=styles[item.severity], bold=item.severity == "critical")
            if coloured()
            else label
        )
        click.echo(f"{label}  {escaped(reaching(item.message))} [{item.code}]")
        if item.help and item.help not in item.message:
            click.echo(f"{'':>8}  → {hint(context.cluster, item.help)}")
