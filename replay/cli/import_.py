"""``replay import``."""

from __future__ import annotations

import click

from events.cli.options import BusContext, awaited, bus_options, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import progress


@click.command("import")
@click.option(
    "--archive", "archives", multiple=True, required=True, metavar="FILE", help="What to import. Repeatable."
)
@bus_options
@click.option("--replicas", type=click.Choice(["1", "3"]), default=None, help="Of the stream [1].")
@json_option
@awaited
async def import_command(
    archives: tuple[str, ...], context: BusContext, replicas: str | None, as_json: bool
) -> None:
    """Write an archive into an empty stream, byte for byte, and read it back: disaster recovery.

    The stream is made if it is missing. Stop the controllers first and start them afterwards; agents
    go on without touching the kernel. An interrupted import goes on when it is run again.

    \b
    isthmus replay import --archive prod.isthmus --cluster prod \\
        --bus nats://new:4222
    """
    from events.bus.connection import connect
    from events.jetstream.log import JetStreamLog
    from replay.archive.reader import ArchiveLog
    from replay.transfer import import_archive

    archive = ArchiveLog(*archives)
    client = None
    try:
        client = await connect(context.bus, name="isthmus-import")
        log = await JetStreamLog.open(
            client, context.cluster, create=True, replicas=int(replicas) if replicas else None
        )
        with progress("writing", archive.last) as tick, progress("reading back", archive.last) as again:
            done = await import_archive(archive, log, tick, again)
    finally:
        archive.close()
        if client is not None:
            await client.close()
    if as_json:
        print_json(done)
        return
    print_table(
        ("", ""),
        [
            ("events", f"{done.written:,} written behind {done.found:,} that were there"),
            ("read back", f"{done.verified:,} events, all equal"),
            ("head", f"event {done.last:,}, {done.head}"),
        ],
        title=f"stream of cluster {done.cluster}",
    )
