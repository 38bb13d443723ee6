"""``isthmus clb``: reserve, show and release the address pairs of private load balancers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from controlplane.cli import clb_view
from controlplane.cli.clb_traffic import backend, gateway
from controlplane.cli.common import ask, override_option, send, show_written, write_options
from events.cli.options import BusContext, bus_options, confirm, controller, json_option, run
from events.cli.output import listing_options
from events.cli.tables import print_json, print_table
from events.errors import Usage
from events.protocol.commands import ReleaseClb, ReserveClb
from events.protocol.queries import ClbAnswer, ClbList, ListClb, ShowClb

if TYPE_CHECKING:
    from events.codec import Recorded


@click.group()
def clb() -> None:
    """The two addresses by which external nodes reach the API server and public services.

    \b
    isthmus clb reserve main --subnet 10.0.8.0/28 --exclude 10.0.8.2 \\
        --exclude 10.0.8.3
    isthmus clb reserve main --subnet 10.0.8.0/28 --provider gateway
    isthmus clb gateway add cloud-1
    isthmus clb backend add main apiserver 443 10.0.1.11:6443 --check https \\
        --check-path /readyz
    isthmus clb show main
    isthmus clb release main
    """


@clb.command()
@click.argument("reservation", metavar="NAME")
@click.option("--subnet", required=True, metavar="CIDR", help="The VPC subnet to take two addresses from.")
@click.option("--gateway", default="", metavar="IP", help="The subnet's router [its first address].")
@click.option(
    "--exclude", multiple=True, metavar="IP|CIDR", help="Addresses that the cloud already uses. Repeatable."
)
@click.option(
    "--purposes",
    default="apiserver,public-services",
    show_default=True,
    metavar="FIRST,SECOND",
    help="What the two addresses serve.",
)
@click.option(
    "--provider",
    default="reserve-only",
    show_default=True,
    help="Who realises the addresses: `gateway` is our own gateway nodes, else the cloud's load balancer.",
)
@override_option
@write_options
def reserve(
    *,
    context: BusContext,
    reservation: str,
    subnet: str,
    purposes: str,
    how: dict[str, Any],
    as_json: bool,
    **settings: Any,
) -> None:
    """Reserve two usable addresses of a subnet, both or none. Repeating it changes nothing.

    \b
    Example: isthmus clb reserve main --subnet 10.0.8.0/28 --provider gateway
    """
    pair = tuple(part.strip() for part in purposes.split(","))
    if len(pair) != 2:
        raise Usage("usage", f"--purposes {purposes!r}: name exactly two, separated by a comma")
    command = ReserveClb(reservation=reservation, subnet=subnet, purposes=pair, **settings)
    reply = send(context, command, how)
    addresses = ", ".join(f"{a['purpose']} {a['address']}" for a in reply.result.get("addresses", ()))
    show_written(reply, f"{reservation} reserved in {subnet}: {addresses}", as_json=as_json)
    if not as_json:
        for warning in reply.result.get("warnings", ()):
            click.echo(f"note: {warning}", err=True)


@clb.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@write_options
def release(*, context: BusContext, name: str, yes: bool, how: dict[str, Any], as_json: bool) -> None:
    """Give the two addresses back. External nodes that reach the API server by them lose the way.

    \b
    Example: isthmus clb release main --yes
    """
    if not how["dry_run"]:
        confirm(f"Release {name}? Who reaches the API server by its addresses loses the way.", yes=yes)
    reply = send(context, ReleaseClb(reservation=name), how)
    addresses = ", ".join(a["address"] for a in reply.result.get("addresses", ()))
    show_written(reply, f"{name} released: {addresses}", as_json=as_json)


@clb.command("list")
@listing_options
@bus_options
def list_(*, context: BusContext, as_json: bool) -> None:
    """List the reservations.

    \b
    Example: isthmus clb list
    """
    answer = ask(context, ListClb(), ClbList)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("reservation", "subnet", "purpose", "address", "purpose 2", "address 2", "provider"),
        [
            (r.name, r.subnet, *(text for a in r.addresses for text in (a.purpose, a.address)), r.provider)
            for r in answer.reservations
        ],
        drop=("provider", "subnet"),
        shorten=("purpose 2", "purpose"),
        empty="no reservation: isthmus clb reserve NAME --subnet CIDR",
    )


@clb.command()
@click.argument("name")
@click.option(
    "--history", "lines", type=click.IntRange(0, 1000), default=10, show_default=True,
    help="How many of its last events; 0 for none.",
)  # fmt: skip
@json_option
@bus_options
def show(*, context: BusContext, name: str, lines: int, as_json: bool) -> None:
    """Show one reservation: who holds its addresses, the backends and their health, what happened to it.

    \b
    isthmus clb show main
    isthmus clb show main --history 50
    isthmus replay who --ip 10.0.8.4 --at -2h      who held an address then
    """

    async def main() -> tuple[ClbAnswer, list[Recorded]]:
        async with controller(context) as client:
            view = await client.ask(ShowClb(reservation=name), ClbAnswer)
            return view, await client.history("clb", name) if lines else []

    view, events = run(main())
    if as_json:
        print_json({**msgspec.to_builtins(view), "history": [clb_view.event_json(r) for r in events[-lines:]]})
        return
    clb_view.show(view, events, lines)


clb.add_command(gateway)
clb.add_command(backend)
