"""``isthmus join``, ``isthmus leave`` and ``isthmus token``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from deploy.join import files
from deploy.join.containers import ENGINES, IMAGE
from deploy.join.foreground import watch_over
from deploy.join.joining import FOLDER, Joined, JoinRequest
from deploy.join.joining import join as join_node
from deploy.join.leaving import LeaveRequest, running_pods
from deploy.join.leaving import leave as leave_node
from deploy.join.progress import Progress, Step
from events.cli.files import INPUT_FILE, Input
from events.cli.options import confirm, json_option, run
from events.cli.output import say
from events.cli.tables import print_json
from events.errors import IsthmusError, Refused, Usage
from nodeagent.commands.options import state_option
from nodeagent.local_files import running
from nodeagent.pods.leaving import refuse_running

SIGNS = {"done": "✓", "unchanged": "=", "planned": "·", "failed": "✗"}
TOKEN_LIMIT = 32 * 1024

folder_option = click.option(
    "--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True,
    help="Where settings and credentials go.",
)  # fmt: skip


def _line(step: Step) -> None:
    """One line a step, when it has ended; below it what deserves a look."""
    if step.end is None:
        return
    took_s = max(0.0, (step.end - step.start).total_seconds())
    say(f"{SIGNS[step.status]} {step.name:<14}{took_s:6.1f} s  {step.message}")
    for line in step.detail:
        say(f"  {'':<14}         {line}")


def _progress(*, as_json: bool) -> Progress:
    return Progress() if as_json else Progress(show=_line)


def _document(progress: Progress, **more: Any) -> None:
    print_json({**more, "steps": msgspec.to_builtins(progress.steps)})


@contextlib.contextmanager
def _steps_of_a_failure(progress: Progress) -> Iterator[None]:
    """What was done goes with the error, in the one document that a program reads."""
    try:
        yield
    except IsthmusError as error:
        error.details["steps"] = msgspec.to_builtins(progress.steps)
        raise


@click.command()
@click.argument("token", required=False, envvar="ISTHMUS_JOIN_TOKEN")
@click.option("--token-file", type=INPUT_FILE, help="File with the token; - is standard input.")
@click.option("--node", default="", help="Refuse a token for any other node.")
@click.option(
    "--kind", type=click.Choice(["cloud", "external"]), help="Where the node runs [the token's, or cloud]."
)
@click.option("--site", default="", help="Name of the site, for people [the token's].")
@click.option("--underlay", default="auto", show_default=True, metavar="auto|DEVICE|ADDRESS",
              help="The tunnel's own address, or its device, whose address is followed.")  # fmt: skip
@click.option("--nat", type=click.Choice(["auto", "on", "off"]),
              help="Behind NAT: found out, from the start, or never [auto].")  # fmt: skip
@folder_option
@state_option
@click.option("--foreground", is_flag=True, help="No unit: run the agent here and now, until SIGTERM.")
@click.option("--container", is_flag=True, help="A container instead of a systemd unit.")
@click.option("--engine", type=click.Choice(ENGINES), help="For --container: what runs it [what is found].")
@click.option("--image", default=IMAGE, show_default=True, help="For --container: the image of this release.")
@click.option("--dry-run", is_flag=True, help="Check, and say what would be written; change nothing.")
@json_option
def join(
    *,
    token: str | None,
    token_file: Input | None,
    kind: str | None,
    nat: str | None,
    foreground: bool,
    container: bool,
    engine: str | None,
    image: str,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make this machine a node of a cluster, with everything that takes: one command.

    Checks the machine, turns the token into this node's own credentials, writes the agent's settings, account
    and unit, starts it, waits for its range, and asks every peer through the tunnel. Repeating it is harmless:
    what is done already stays. `isthmus leave` undoes it.

    The token comes from the operator's `isthmus token create NODE`. It is secret: better a file or standard
    input than the command line.

    \b
    Example:
      isthmus join --token-file idc-7.token
      isthmus join --token-file - --dry-run < idc-7.token
      isthmus join --token-file idc-7.token --container \\
          --image registry.example/isthmus:0.3.0
    """
    text = token_file.read_text(TOKEN_LIMIT) if token_file is not None else token
    if not text:
        raise Usage(
            "usage",
            "give the token: isthmus join --token-file FILE, or ISTHMUS_JOIN_TOKEN; "
            "`isthmus token create NODE` at the operator's desk makes one",
        )
    progress = _progress(as_json=as_json)
    if container and foreground:
        raise Usage("usage", "--container and --foreground are two ways to run the agent: choose one")
    request = JoinRequest(
        token=text, kind=kind or "", nat=nat or "", foreground=foreground, dry_run=dry_run, container=container,
        engine=engine or "", image=image, **options,
    )  # fmt: skip
    with _steps_of_a_failure(progress):
        joined = run(join_node(request, progress))
    if foreground and not dry_run:
        if running(request.state_dir):
            raise Refused("agent_running", f"node {joined.node} is joined, and its agent runs here already")
        if not as_json:
            say(f"node {joined.node}: the agent runs here with {joined.config}")
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        watch_over(request, joined, progress, lambda done: _say_all(done, progress, as_json=as_json))
        program = Path(sys.argv[0]).resolve()
        os.execv(  # noqa: S606  no shell is wanted: the agent takes this process's place
            sys.executable, [sys.executable, str(program), "agent", "run", "--config", joined.config]
        )
    _say_all(joined, progress, as_json=as_json, dry_run=dry_run)
    if joined.silent:
        raise SystemExit(1)


def _say_all(joined: Joined, progress: Progress, *, as_json: bool, dry_run: bool = False) -> None:
    if as_json:
        _document(progress, **msgspec.to_builtins(joined))
        return
    if dry_run:
        click.echo(f"node {joined.node}: nothing was changed")
        return
    answering = joined.peers - len(joined.silent)
    click.echo(f"node {joined.node} has {joined.range}; {answering} of {joined.peers} peers answer")


@click.command()
@folder_option
@state_option
@click.option("--reason", default="", help="For the record.")
@click.option("--untold", is_flag=True, help="Go on although the cluster cannot be told.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, and leave although pods run here.")
@json_option
def leave(*, yes: bool, as_json: bool, **options: Any) -> None:
    """Undo a join: stop the agent, tell the cluster, remove device, rows, firewall, settings and credentials.

    Pods that run on this node lose their way to other nodes: while any does, it is refused unless --yes says
    so, and the range is not reused before they are gone. Isthmus itself stays installed.

    \b
    Example: isthmus leave --reason "moved to ams-2"
    """
    request = LeaveRequest(**options)
    if not yes:
        found = running_pods(request)
        if found is not None:
            refuse_running(found[1], found[0], files.leave_command(request.folder, request.state_dir))
        confirm("This machine leaves its cluster: it loses the overlay. Go on?", yes=yes)
    progress = _progress(as_json=as_json)
    with _steps_of_a_failure(progress):
        node = run(leave_node(request, progress))
    if as_json:
        _document(progress, node=node)
    else:
        click.echo(f"{f'node {node}' if node else 'this machine'} is no node any more")
