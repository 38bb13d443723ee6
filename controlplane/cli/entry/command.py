"""``isthmus entry``: who from outside of the overlay may reach pods, through gateway nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from controlplane.cli.clb_view import event_json
from controlplane.cli.common import ask, send, show_written, write_options
from controlplane.cli.entry.closing import closing
from controlplane.console.event_text import sentence
from events.cli.numbers import Finite
from events.cli.options import BusContext, bus_options, confirm, controller, json_option, run
from events.cli.output import listing_options
from events.cli.tables import print_json, print_table
from events.protocol.commands import AddEntry, CommandReply, RemoveEntry
from events.protocol.queries import EntryList, EntryView, ListEntries, ShowEntry

if TYPE_CHECKING:
    from events.codec import Recorded

CLOSE_S = 5.0
"""How long gateways are waited for; those that follow the bus need a fraction of it."""
NOBODY = "nobody: isthmus clb gateway add NODE"


@click.group()
def entry() -> None:
    """Let hosts outside of the overlay reach pods and ClusterIPs, through gateways. Nobody does by default.

    \b
    isthmus clb reserve main --subnet 10.0.8.0/28 --provider gateway
    isthmus clb gateway add cloud-1
    isthmus entry add apiserver --from 10.0.0.0/28
    isthmus entry list
    isthmus entry remove apiserver
    """


@entry.command()
@click.argument("name")
@click.option(
    "--from",
    "sources",
    required=True,
    multiple=True,
    metavar="CIDR[,CIDR…]",
    help="The hosts that may come in; all others are shut out. Repeatable.",
)
@click.option(
    "--address",
    default="",
    metavar="IP",
    help="The address of a CLB pair to which their routers send [the first that gateways hold].",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@write_options
def add(
    *,
    context: BusContext,
    name: str,
    sources: tuple[str, ...],
    address: str,
    yes: bool,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Let these sources reach pods, or say anew who may. Repeating it changes nothing.

    Their router, or they themselves, need a route: the container CIDR by the address that is shown.

    \b
    Example: isthmus entry add apiserver --from 10.0.0.0/28
    """
    listed = tuple(part.strip() for text in sources for part in text.split(",") if part.strip())
    if not how["dry_run"]:
        who = ", ".join(listed) or "nobody"
        confirm(f"Let {who} open connections to every pod and ClusterIP, as entry {name}?", yes=yes)
    reply = send(context, AddEntry(entry=name, sources=listed, address=address), how)
    came = reply.result
    sentence = (
        f"{name}: {', '.join(came['sources'])} may reach pods by {came['address']}, held by "
        f"{came['node'] or NOBODY}"
    )
    _show(context, reply, sentence, CLOSE_S, as_json=as_json)
    if not as_json and not reply.dry_run:
        for cidr in came["containers"]:
            click.echo(f"their route: ip route add {cidr} via {came['address']}")


@entry.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--wait", "within_s", type=Finite(0, 300), default=CLOSE_S, show_default=True, metavar="SECONDS",
    help="How long to wait for the gateways to say that they have closed it.",
)  # fmt: skip
@write_options
def remove(
    *, context: BusContext, name: str, yes: bool, within_s: float, how: dict[str, Any], as_json: bool
) -> None:
    """Let its sources in no more; their running connections end, too.

    It says which gateways have closed it. One that has not said so may let them in still, as long as it is cut
    off from the bus.

    \b
    Example: isthmus entry remove apiserver --yes
    """
    if not how["dry_run"]:
        confirm(f"Remove entry {name}? Running connections of its sources end at once.", yes=yes)
    reply = send(context, RemoveEntry(entry=name), how)
    sentence = f"{name} removed: {', '.join(reply.result['sources'])} reach pods no more"
    _show(context, reply, sentence, within_s, as_json=as_json)


def _show(context: BusContext, reply: CommandReply, sentence: str, within_s: float, *, as_json: bool) -> None:
    """What the command did; and of sources that it shut out, which gateways have closed to them."""
    shuts = bool(reply.result.get("shut_out")) and not reply.dry_run
    gateways = list(reply.result.get("gateways", ())) if shuts else []
    found = run(closing(context, gateways, reply.sequence, within_s))
    if as_json:
        print_json({**msgspec.to_builtins(reply), **({"closing": found} if shuts else {})})
        return
    show_written(reply, sentence, as_json=False)
    closed = [one.node for one in found if one.closed]
    if closed:
        click.echo(f"closed on: {', '.join(closed)}")
    for one in found:
        if not one.closed:
            click.echo(
                f"NOT CONFIRMED by {one.node}: {one.why}. While it does not follow the bus, it may let them in "
                f"(isthmus node show {one.node}); to be sure, stop that machine",
                err=True,
            )


@entry.command("list")
@listing_options
@bus_options
def list_(*, context: BusContext, as_json: bool) -> None:
    """List the entries.

    \b
    Example: isthmus entry list
    """
    answer = ask(context, ListEntries(), EntryList)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("entry", "sources", "address", "held by", "since"),
        [(e.name, ", ".join(e.sources), e.address, e.node or "nobody", e.since) for e in answer.entries],
        right=("since",),
        empty="no entry: nobody outside reaches pods (isthmus entry add NAME --from CIDR)",
    )


@entry.command()
@click.argument("name")
@click.option(
    "--history", "lines", type=click.IntRange(0, 1000), default=10, show_default=True,
    help="How many of its last events; 0 for none.",
)  # fmt: skip
@json_option
@bus_options
def show(*, context: BusContext, name: str, lines: int, as_json: bool) -> None:
    """Show one entry: who may come in, by which address, which gateway holds it, what happened to it.

    \b
    isthmus entry show apiserver
    isthmus replay history entry apiserver   all of it, also once it is removed
    """

    async def main() -> tuple[EntryView, list[Recorded]]:
        async with controller(context) as client:
            view = await client.ask(ShowEntry(entry=name), EntryView)
            return view, await client.history("entry", name) if lines else []

    view, events = run(main())
    if as_json:
        print_json({**msgspec.to_builtins(view), "history": [event_json(r) for r in events[-lines:]]})
        return
    print_table(
        (f"entry {view.name}", ""),
        [
            ("sources", ", ".join(view.sources)),
            ("address", f"{view.address} (CLB {view.reservation})"),
            ("held by", f"{view.node}, epoch {view.epoch}" if view.node else NOBODY),
            ("since", f"event {view.since}"),
        ],
    )
    if lines:
        print_table(
            ("event", "when", "what", "by"),
            [
                (r.sequence, f"{r.envelope.time:%Y-%m-%d %H:%M:%S}Z", sentence(r.event), r.envelope.actor)
                for r in events[-lines:]
            ],
            title=f"its last {min(lines, len(events))} of {len(events)} events",
        )
