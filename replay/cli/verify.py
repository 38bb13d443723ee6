"""``replay verify``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from events.cli.options import awaited, default_actor, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, Session, opened, progress, source_options

if TYPE_CHECKING:
    from controlplane.controller.publishing.checkpoints import Checkpoint
    from replay.verification.outcome import Report, Wanted

_SHOWN = 40


@click.command("verify")
@source_options
@click.option(
    "--report", "report_file", type=click.Path(dir_okay=False), help="Write the auditor's report (HTML)."
)
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    metavar="KEY",
    help="A controller's public key: PEM file or 64 hex digits. Repeat it for several controllers.",
)
@click.option(
    "--checkpoints", "files", multiple=True, metavar="FILE", help="Signed checkpoints to hold the log to."
)
@click.option(
    "--against", multiple=True, metavar="FILE", help="An archive of the same log made earlier. Repeatable."
)
@click.option("--expect", default="", metavar="SEQ:DIGEST", help="A head known from elsewhere.")
@click.option(
    "--jobs",
    type=click.IntRange(0, 1024),
    default=0,
    help="Processes for the checks of form [one per processor].",
)
@json_option
@awaited
async def verify_command(  # noqa: PLR0917  click passes options by name
    source: LogSource,
    report_file: str | None,
    public_keys: tuple[str, ...],
    files: tuple[str, ...],
    against: tuple[str, ...],
    expect: str,
    jobs: int,
    as_json: bool,
) -> None:
    """Check every claim of a log; find and locate whatever is wrong. Exit code 1 if anything is.

    Hash chain, order, envelopes, transactions, schema, invariants at every sequence, and state
    digests: of signed checkpoints, of the live controller, of a read model. Signed checkpoints that
    an archive carries are used by themselves; a public key makes them proof: then a log that nothing
    signed by that key vouches for is not sound.

    \b
    isthmus replay verify --report audit.html
    isthmus replay verify --archive prod.isthmus --public-key controller.pub
    isthmus replay verify --against monday.isthmus
    """
    from controlplane.controller.publishing.checkpoints import load_public_key, read_checkpoints
    from events.errors import Usage
    from replay.output_files import whole_file
    from replay.verification.external_digests import head_of, heads_of, read_model_says
    from replay.verification.outcome import Wanted
    from replay.verification.report import html
    from replay.verification.verify import verify

    if jobs < 0:
        raise Usage("usage", f"--jobs is {jobs}; the least is 0, for one per processor")
    keys = tuple(dict.fromkeys(load_public_key(key) for key in public_keys))
    checkpoints: list[Checkpoint] = []
    for file in files:
        found = read_checkpoints(file)
        if not found:
            raise Usage("usage", f"--checkpoints {file} holds no checkpoint")
        checkpoints += found
    heads = [head for file in against for head in heads_of(file)]
    if expect:
        heads.append(head_of(expect))
    states: list[tuple[str, int, str]] = []
    if source.read_model:
        state, head = read_model_says(source.read_model, source.context.cluster if not source.archives else "")
        states.append(state)
        heads.append(head)
    # What others say is asked before the log's end is taken: the log may grow meanwhile, never shrink.
    if not source.archives:
        stated, told = await _controller(source)
        states.extend(stated)
        checkpoints.extend(told)
    async with opened(source, tolerant=True) as session:
        wanted: Wanted = Wanted(
            checkpoints=tuple(checkpoints) + _carried(session),
            public_keys=keys,
            states=tuple(states),
            heads=tuple(heads),
            jobs=jobs,
        )
        with progress("verifying", session.history.end, start=session.history.start) as tick:
            report = await verify(session.history, wanted, tick)
        if report_file:
            read = [name for name in source.archives if os.path.isfile(name)]  # noqa: ASYNC240, PTH113  once, after the work
            with whole_file(report_file) as beside:
                page = html(report, session.tz, ran_by=default_actor(), archives=read)
                beside.write_text(page, encoding="utf-8")
        if as_json:
            print_json(report)
        else:
            _print(session, report, report_file)
    if not report.sound:
        click.get_current_context().exit(1)


def _carried(session: Session) -> tuple[Checkpoint, ...]:
    """The signed checkpoints that an archive carries."""
    from controlplane.controller.publishing.checkpoints import parse_checkpoints
    from events.errors import VerificationFailed

    archive = session.history.index.archive
    if archive is None:
        return ()
    try:
        return tuple(parse_checkpoints(b"\n".join(archive.notes("checkpoint"))))
    except VerificationFailed:
        return ()  # damaged notes are a finding of the check of the file


async def _controller(source: LogSource) -> tuple[list[tuple[str, int, str]], tuple[Checkpoint, ...]]:
    """What the live controller says of its state, and its signed checkpoints; nothing when none answers."""
    from controlplane.controller.publishing.checkpointer import CheckpointList, ListCheckpoints
    from events.cli.options import controller
    from events.errors import Unavailable
    from events.protocol.queries import ClusterView, ShowCluster

    try:
        async with controller(source.context) as client:
            view = await client.ask(ShowCluster(), ClusterView, timeout_s=2.0)
            told = await client.ask(ListCheckpoints(), CheckpointList, timeout_s=2.0)
    except Unavailable as error:
        if error.code == "bus_unreachable":
            raise
        click.echo("note: no controller answers; its state is not compared", err=True)
        return [], ()
    states = [("the live controller", view.sequence, view.digest)] if view.sequence else []
    return states, told.checkpoints


def _print(session: Session, report: Report, report_file: str | None) -> None:
    print_table(
        ("check", "looked at", "result"),
        [
            (
                check.title + (f" ({check.detail})" if check.detail else ""),
                f"{check.looked_at:,} {check.unit}",
                "passed" if check.passed else f"{check.errors:,} errors" if check.errors else "not completed",
            )
            for check in report.checks
        ],
        title=f"cluster {report.cluster}, events {report.first:,} to {report.last:,} ({report.source})",
        right=("looked at",),
    )
    if report.findings:
        print_table(
            ("event", "level", "code", "what"),
            [(f.sequence or "–", f.level, f.code, f.message) for f in report.findings[:_SHOWN]],
            title="findings" + (f", the first {_SHOWN}" if len(report.findings) > _SHOWN else ""),
            right=("event",),
        )
    span = f"recorded {session.show(report.recorded_from)} to {session.show(report.recorded_to)}"
    rate = report.events / report.took_s if report.took_s else 0
    click.echo(f"{span}; {report.took_s:.1f} s, {rate:,.0f} events/s")
    click.echo(f"chain {report.head}")
    click.echo(f"state {report.state_digest or 'not reached'}")
    if report_file:
        click.echo(f"report written to {report_file}")
    click.echo("SOUND" if report.sound else f"NOT SOUND: {report.errors:,} errors")
