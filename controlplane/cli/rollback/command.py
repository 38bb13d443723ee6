"""``isthmus cluster prepare-rollback``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import click
from nats.aio.client import Client

from controlplane.cli.common import release_of
from controlplane.controller.replication.rollback import Prepared, prepare_rollback
from events.bus.client import ControllerClient
from events.bus.connection import connect
from events.cli.options import BusContext, bus_options, confirm, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import Refused, Unavailable
from events.jetstream.log import JetStreamLog
from events.protocol.queries import ClusterView, ShowCluster
from events.types.releases import FIRST, follows

ASK_S, LOOK_S = 3.0, 0.1


@click.command("prepare-rollback")
@click.argument("release", default=FIRST, callback=release_of)
@click.option(
    "--leave-behind-nat", is_flag=True, help="Go on although nodes behind NAT lose their ways to other sites."
)
@click.option("--dry-run", is_flag=True, help="Say what would be left out; write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@bus_options
@json_option
def prepare_rollback_command(
    *, release: str, leave_behind_nat: bool, dry_run: bool, yes: bool, context: BusContext, as_json: bool
) -> None:
    """Make the log one that RELEASE (0.2.0) can follow, with the same members, ranges and reservations.

    Events of types that it does not know (keys, NAT, encryption that was switched off again, …) are parked:
    they stay in the log with all their hashes, and everybody leaves them out. What would change the cluster is
    refused, with the way out. Start all controllers with --compatible-with RELEASE before, so that no such
    event is written any more, or stop them; afterwards start those of RELEASE. Needs a controller's
    credentials.

    \b
    isthmus cluster prepare-rollback 0.2.0 --dry-run
    isthmus cluster prepare-rollback 0.2.0 --yes \\
        --creds /etc/isthmus/controller.creds
    """
    if not dry_run:
        confirm(
            f"Leave out of the log of cluster {context.cluster} what {release} cannot follow? It stays there, "
            f"and counts as never written.",
            yes=yes,
        )

    async def main() -> Prepared:
        client = await connect(context.bus, name="isthmus-rollback")
        try:
            if not dry_run:
                controllers = ControllerClient(client, context.cluster, actor=context.actor)
                await _refuse_while_written(controllers, release)
            log = await JetStreamLog.open(client, context.cluster)
            work = prepare_rollback(
                log, release, actor=context.actor, leave_behind_nat=leave_behind_nat, dry_run=dry_run
            )
            return await _unless_forbidden(client, work)
        finally:
            await client.close()

    done = run(main())
    if as_json:
        print_json(done)
        return
    print_table(
        ("type", "events"),
        sorted(done.left_out.items()),
        title=f"What {release} leaves out" if done.left_out else "",
        right=("events",),
        empty=f"{release} can follow every event already",
    )
    for name in done.behind_nat:
        click.echo(f"{name} is behind NAT: with {release} it is reached only where its own address leads to it")
    if dry_run:
        click.echo("nothing was written")
    elif done.written:
        click.echo(f"{release} can follow the log up to event {done.sequence}: start its controllers")


async def _unless_forbidden(client: Client, work: Coroutine[Any, Any, Prepared]) -> Prepared:
    """What it comes to. Raises Refused(forbidden) once the bus has denied to write events."""
    task = asyncio.create_task(work, name="prepare a rollback")
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
            denied = next((one for one in getattr(client, "denied", ()) if ".events." in one), "")
            if denied:
                raise Refused(
                    "forbidden",
                    "these credentials may not write events: give a controller's (--creds, ISTHMUS_CREDS)",
                    subject=denied,
                )
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _refuse_while_written(client: ControllerClient, release: str) -> None:
    """Raises Refused(older_release) while a controller leads that would write such events again."""
    try:
        view = await client.ask(ShowCluster(), ClusterView, timeout_s=ASK_S)
    except Unavailable:
        return  # none does
    newer = view.version and not follows(release, view.version)
    if newer and view.compatible_with != release:
        raise Refused(
            "older_release",
            f"controller {view.controller} ({view.version}) leads and would write events again that {release} "
            f"cannot follow. Start all controllers with --compatible-with {release}, or stop them, and repeat",
            controller=view.controller,
        )
