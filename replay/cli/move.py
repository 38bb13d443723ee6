"""``replay export``, ``import``, ``capsule`` and ``sample``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from events.cli.options import BusContext, bus_options, json_option, run
from events.cli.tables import print_json, print_table
from replay.cli.source import Source, opened, progress, source_options

if TYPE_CHECKING:
    from controlplane.controller.publishing.checkpoints import Checkpoint


@click.command("export")
@source_options
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--continue", "resume", is_flag=True, help="Continue FILE: a finished or an interrupted export.")
@click.option(
    "--since", default="", metavar="ARCHIVE", help="Write only what comes behind this earlier archive."
)
@click.option("--sign", default="", metavar="KEY", help="Sign the archive with this Ed25519 key (PEM).")
@click.option(
    "--checkpoints",
    default="",
    metavar="FILE",
    help="Signed checkpoints to put into it [those that the live controller tells].",
)
@json_option
def export_command(  # noqa: PLR0917  click passes options by name
    source: Source, file: str, resume: bool, since: str, sign: str, checkpoints: str, as_json: bool
) -> None:
    """Write the log into one compressed, verifiable file.

    Interrupt it whenever you like: the file stays readable, and --continue goes on. Run with
    --continue from a timer, it is a backup that costs only what is new.

    \b
    isthmus replay export prod.isthmus
    isthmus replay export prod.isthmus --continue
    isthmus replay export tuesday.isthmus --since monday.isthmus
    zstd -dc prod.isthmus | jq -c 'select(.type == "node.joined.v1") | .body.node'
    """
    run(_export(source, file, since, sign, checkpoints, resume=resume, as_json=as_json))


async def _export(
    source: Source, file: str, since: str, sign: str, checkpoints: str, *, resume: bool, as_json: bool
) -> None:
    from controlplane.controller.publishing.checkpoints import SigningKey, read_checkpoints
    from replay.transfer import export

    signer = SigningKey.load(sign) if sign else None
    signed = read_checkpoints(checkpoints) if checkpoints else []
    async with opened(source) as asked:
        if not source.archives and not checkpoints:
            signed = await _told(source)
        with progress("exporting", asked.history.end) as tick:
            done = await export(
                asked.history,
                file,
                resume=resume,
                since=since or None,
                signer=signer,
                checkpoints=[item for item in signed if item.sequence <= asked.history.end],
                progress=tick,
            )
        if as_json:
            print_json(done)
            return
        per = (
            f", {done.size_bytes / done.last:.0f} bytes an event"
            if done.mode != "increment" and done.last
            else ""
        )
        print_table(
            ("", ""),
            [
                ("file", f"{done.path} ({done.mode}), {done.size_bytes:,} bytes{per}"),
                ("events", f"{done.first:,} to {done.last:,}; {done.written:,} written now"),
                ("head", done.head),
                ("signed by", done.signed_by or "nobody (--sign KEY)"),
            ],
        )
        if done.broken:
            click.echo(f"WARNING: {done.broken:,} links do not hold, the first: {done.first_broken}", err=True)


async def _told(source: Source) -> list[Checkpoint]:
    """The live controller's signed checkpoints; none when no controller answers."""
    from controlplane.controller.publishing.checkpointer import ListCheckpoints, ToldCheckpoints
    from events.cli.options import controller
    from events.errors import Unavailable

    try:
        async with controller(source.context) as client:
            return list((await client.ask(ListCheckpoints(), ToldCheckpoints, timeout_s=2.0)).checkpoints)
    except Unavailable:
        return []


@click.command("import")
@click.option(
    "--archive", "archives", multiple=True, required=True, metavar="FILE", help="What to import. Repeatable."
)
@bus_options
@click.option("--replicas", type=click.Choice(["1", "3"]), default=None, help="Of the stream [1].")
@json_option
def import_command(archives: tuple[str, ...], context: BusContext, replicas: str | None, as_json: bool) -> None:
    """Write an archive into an empty stream, byte for byte, and read it back: disaster recovery.

    The stream is made if it is missing. Stop the controllers first and start them afterwards; agents
    go on without touching the kernel. An interrupted import goes on when it is run again.

    \b
    isthmus replay import --archive prod.isthmus --cluster prod --bus nats://new:4222
    """
    run(_import(archives, context, int(replicas) if replicas else None, as_json=as_json))


async def _import(
    archives: tuple[str, ...], context: BusContext, replicas: int | None, *, as_json: bool
) -> None:
    from events.bus.connection import connect
    from events.jetstream.log import JetStreamLog
    from replay.archive.reader import ArchiveLog
    from replay.transfer import import_archive

    archive = ArchiveLog(*archives)
    client = None
    try:
        client = await connect(context.bus, name="isthmus-import")
        log = await JetStreamLog.open(client, context.cluster, create=True, replicas=replicas)
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


@click.command("capsule")
@source_options
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--from", "since", required=True, metavar="WHEN", help="The state at this moment comes along.")
@click.option("--to", "until", default="now", show_default=True, metavar="WHEN", help="The last event.")
@click.option("--reason", default="", help="What happened, for whoever opens it.")
@json_option
def capsule_command(  # noqa: PLR0917  click passes options by name
    source: Source, file: str, since: str, until: str, reason: str, as_json: bool
) -> None:
    """Pack an incident: a stretch of the log, the state before it, the agents' reports.

    A capsule is an archive: every replay command takes it with --archive. The lab re-runs it.

    \b
    isthmus replay capsule incident.isthmus --from 'yesterday 14:00' --to 'yesterday 14:20'
    isthmus lab --capsule incident.isthmus
    """
    run(_capsule(source, file, since, until, reason, as_json=as_json))


async def _capsule(source: Source, file: str, since: str, until: str, reason: str, *, as_json: bool) -> None:
    from replay.capsule import make_capsule

    async with opened(source) as asked:
        begin, end = await asked.point(since), await asked.point(until)
        with progress("packing", end.sequence) as tick:
            about = await make_capsule(asked.states(), begin, end, file, reason=reason, progress=tick)
        if as_json:
            print_json(about)
            return
        rows: list[tuple[str, Any]] = [
            ("file", f"{file}, {Path(file).stat().st_size:,} bytes"),  # noqa: ASYNC240  once, after the work
            ("events", f"{about.begin.sequence + 1:,} to {about.end.sequence:,}"),
            ("from", asked.at(about.begin)),
            ("to", asked.at(about.end)),
            ("state before", f"{about.nodes:,} nodes, digest {about.digest}"),
            ("agents' reports", f"{about.reports:,}"),
        ]
        print_table(("", ""), rows, title=f"capsule of cluster {about.cluster}")


@click.command("sample")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--events", "count", default=10_000, show_default=True, help="How many events.")
@click.option("--nodes", default=3000, show_default=True, help="About how many nodes at a time, at most.")
@click.option("--seed", default=1, show_default=True, help="Decides everything.")
def sample_command(file: str, count: int, nodes: int, seed: int) -> None:
    """Make a practice archive with a long, lawful, made-up history: to try this tool without a cluster.

    \b
    isthmus replay sample practice.isthmus --events 100000
    isthmus replay stats --archive practice.isthmus
    """
    from events.chain import genesis
    from replay.archive.writer import ArchiveWriter
    from replay.sample import Sample

    writer = ArchiveWriter.create(file, "sample", genesis("sample"), source=f"made up from seed {seed}")
    try:
        with progress("making up", count) as tick:
            for batch in Sample("sample", seed=seed, target=nodes).batches(count):
                writer.add(batch)
                tick(batch[-1].sequence)
        done = writer.finish()
    finally:
        writer.close()
    click.echo(f"{file}: {done.count:,} events, {Path(file).stat().st_size:,} bytes")
