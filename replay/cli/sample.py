"""``replay sample``."""

from __future__ import annotations

from pathlib import Path

import click

from replay.cli.session import progress


@click.command("sample")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--events", "count", default=10_000, show_default=True, help="How many events.")
@click.option(
    "--nodes",
    type=click.IntRange(1, 100_000),
    default=3000,
    show_default=True,
    help="About how many nodes at a time, at most.",
)
@click.option("--seed", default=1, show_default=True, help="Decides everything.")
def sample_command(file: str, count: int, nodes: int, seed: int) -> None:
    """Make a practice archive with a long valid sample history: to try this tool without a cluster.

    \b
    isthmus replay sample practice.isthmus --events 100000
    isthmus replay stats --archive practice.isthmus
    """
    from events.chain import genesis
    from replay.archive.writer import ArchiveWriter
    from replay.output_files import cannot_write
    from replay.sample import Sample

    writer = ArchiveWriter.create(file, "sample", genesis("sample"), source=f"sample from seed {seed}")
    try:
        with progress("writing", count) as tick:
            for batch in Sample("sample", seed=seed, target=nodes).batches(count):
                writer.add(batch)
                tick(batch[-1].sequence)
        done = writer.finish()
    except BaseException as error:
        writer.abandon()
        Path(file).unlink(missing_ok=True)  # the seed makes it again; a part of it is in the way
        if isinstance(error, OSError):
            raise cannot_write(file, error) from error
        raise
    click.echo(f"{file}: {done.count:,} events, {Path(file).stat().st_size:,} bytes")
