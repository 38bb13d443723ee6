"""``replay export``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from events.errors import IsthmusError
from events.protocol.pods import PodPage
from replay.cli.session import (
    LogSource,
    controllers_checkpoints,
    opened,
    pod_pages,
    progress,
    source_options,
)
from replay.output_files import whole_file


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
    help="Signed checkpoints to put into it [those of the live controller].",
)
@click.option("--no-pods", is_flag=True, help="Leave out which pod had which address.")
@click.option(
    "--metrics",
    default="",
    metavar="FILE",
    help="Say in this file when it was done, for node_exporter's textfile collector (a name ending in .prom).",
)
@json_option
@awaited
async def export_command(  # noqa: PLR0917  click passes options by name
    source: LogSource,
    file: str,
    resume: bool,
    since: str,
    sign: str,
    checkpoints: str,
    no_pods: bool,
    metrics: str,
    as_json: bool,
) -> None:
    """Write the log into one compressed, verifiable file.

    With it goes what is kept of pods and their addresses (--no-pods leaves that out).

    Interrupt it whenever you like: the file stays readable, and --continue goes on. Run with
    --continue from a timer, it is a backup that costs only what is new.

    \b
    isthmus replay export prod.isthmus
    isthmus replay export prod.isthmus --continue
    isthmus replay export tuesday.isthmus --since monday.isthmus
    zstd -dc prod.isthmus | jq -c 'select(.type == "node.joined.v1") | .body.node'
    """
    from controlplane.controller.publishing.checkpoints import SigningKey, read_checkpoints
    from replay.transfer import export

    signer = SigningKey.load(sign) if sign else None
    signed = read_checkpoints(checkpoints) if checkpoints else []
    async with opened(source) as session:
        if not source.archives and not checkpoints:
            signed = await controllers_checkpoints(source)
        with progress("exporting", session.history.end) as tick:
            done = await export(
                session.history,
                file,
                resume=resume,
                since=since or None,
                signer=signer,
                checkpoints=[item for item in signed if item.sequence <= session.history.end],
                pods=None if no_pods else partial(_pods, source),
                progress=tick,
            )
        if metrics and not done.broken:
            write_backup_metrics(Path(metrics), source.context.cluster, done.last)
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
                ("pods", f"{done.pods:,} facts written now" if not no_pods else "left out (--no-pods)"),
                ("head", done.head),
                ("signed by", done.signed_by or "nobody (--sign KEY)"),
            ],
        )
        if done.broken:
            click.echo(f"WARNING: {done.broken:,} links do not hold, the first: {done.first_broken}", err=True)


async def _pods(source: LogSource, after: int) -> AsyncIterator[PodPage]:
    """What is kept of pods; none, with a word, when nobody can tell: the log is what an export is for.

    Cancelled, it leaves nothing behind.
    """
    try:
        async for page in pod_pages(source, after):
            yield page
    except IsthmusError as error:
        click.echo(f"note: facts of pods are left out: {error.message}", err=True)


def write_backup_metrics(path: Path, cluster: str, last: int) -> None:
    """Write the time (s since 1970) and last sequence of a backup as Prometheus reads them. Raises Refused."""
    text = "".join(
        f"# HELP {name} {what}\n# TYPE {name} gauge\n{name}{{isthmus_cluster={json.dumps(cluster)}}} {value}\n"
        for name, what, value in (
            (
                "isthmus_backup_time_seconds",
                "When the log was exported, s since 1970.",
                int(time.time()),
            ),
            ("isthmus_backup_sequence", "The last event of that export.", last),
        )
    )
    with whole_file(path) as beside:
        beside.write_text(text)
