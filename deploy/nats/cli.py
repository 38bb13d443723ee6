"""``isthmus site``: what a site's leaf server needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from events.cli.options import BusContext, bus_options, json_option, run
from events.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from deploy.nats.mirrors import MirrorState


@click.group()
def site() -> None:
    """Keep a copy of the log at a site, for when the link to the cloud is down."""


@site.command()
@bus_options
@click.option(
    "--hub-domain", default="hub", show_default=True, help="JetStream domain of the servers that hold the log."
)
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait until the mirrors are level.")
@json_option
def init(context: BusContext, hub_domain: str, wait: float, as_json: bool) -> None:
    """Make this site's mirrors of the log and the snapshots, and wait until they are level.

    Run it once against the site's own server (deploy/nats/site.conf). Running it again checks.

    \b
    isthmus site init --bus nats://idc-1-bus:4222 --cluster prod
    """
    run(_init(context, hub_domain, wait, as_json=as_json))


@site.command()
@bus_options
@json_option
def status(context: BusContext, as_json: bool) -> None:
    """Say how far this site's mirrors are behind the hub.

    \b
    isthmus site status --bus nats://idc-1-bus:4222 --cluster prod
    """
    run(_status(context, as_json=as_json))


async def _init(context: BusContext, hub_domain: str, wait_s: float, *, as_json: bool) -> None:
    from deploy.nats.mirrors import make_mirrors, wait_caught_up
    from events.bus.connection import connect

    client = await connect(context.bus, name="isthmus-site")
    try:
        await make_mirrors(client, context.cluster, hub_domain=hub_domain)
        _show(await wait_caught_up(client, context.cluster, timeout_s=wait_s), as_json=as_json)
    finally:
        await client.close()


async def _status(context: BusContext, *, as_json: bool) -> None:
    from deploy.nats.mirrors import mirror_states
    from events.bus.connection import connect

    client = await connect(context.bus, name="isthmus-site")
    try:
        _show(await mirror_states(client, context.cluster), as_json=as_json)
    finally:
        await client.close()


def _show(states: list[MirrorState], *, as_json: bool) -> None:
    if as_json:
        print_json(states)
        return
    print_table(
        ["stream", "sequence", "behind", "hub last heard", "remark"],
        [
            (
                state.stream,
                state.sequence if state.exists else "–",
                state.lag if state.silent_s >= 0 else "–",
                f"{state.silent_s:.1f} s ago" if state.silent_s >= 0 else "never",
                state.error,
            )
            for state in states
        ],
        right=["sequence", "behind"],
    )
