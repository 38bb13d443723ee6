"""`isthmus agent leave`: only the cluster is told; `isthmus leave` undoes a whole join."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import msgspec

from events.cli.hints import hint
from events.cli.options import BusContext, bus_options, confirm, run
from nodeagent.commands.options import cni_option, state_option
from nodeagent.config import DEFAULT_CNI_DIR, DEFAULT_STATE_DIR


@click.command("leave")
@bus_options
@state_option
@cni_option
@click.option("--reason", default="", help="For the record.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, and leave although pods run here.")
def leave_command(context: BusContext, state_dir: Path, cni_dir: Path, reason: str, yes: bool) -> None:
    """Tell the cluster that this node leaves; its range drains, and the others remove their rows.

    Stop the agent first, or it joins again at its next start. The node's own rows stay until `clean`. Its
    range is not reused before no pod on it has an address of it. Broken off, it can be repeated. What was made
    by `isthmus join` is undone by `isthmus leave`.

    \b
    Example:
      isthmus agent leave --bus nats://10.0.0.2:4222 --cluster prod
    """
    from events.bus.connection import connect
    from nodeagent import identity, local_files
    from nodeagent.pods.leaving import is_elsewhere, last_word, leave, pods_here, refuse_running

    status = last_word(state_dir) or local_files.read_status(state_dir)  # which says that there is none
    pods = pods_here(state_dir, status, Path(status.pod_directory or state_dir / "pod-addresses"))
    elsewhere = is_elsewhere(state_dir, status)
    if not yes:
        refuse_running(pods, status, hint(context.cluster, _again(state_dir, cni_dir)))
    confirm(f"Leave the cluster with {status.node}? Its range drains and its pods lose their network.", yes=yes)

    async def go() -> bool:
        client = await connect(context.bus, name=f"isthmus-leave/{status.node}")
        try:
            named = msgspec.structs.replace(status, cluster=context.cluster)
            return await leave(
                client, named, pods, reason=reason, cni_dir=cni_dir, actor=context.actor, elsewhere=elsewhere
            )
        finally:
            await client.close()

    was_member = run(go())
    identity.left(state_dir)
    if was_member:
        click.echo(f"{status.node} has left; {status.range or 'no range'} drains")
    else:
        click.echo(f"{status.node} is no member any more: it had left before")


def _again(state_dir: Path, cni_dir: Path) -> str:
    usual = (("--state-dir", state_dir, DEFAULT_STATE_DIR), ("--cni-dir", cni_dir, DEFAULT_CNI_DIR))
    words = [word for option, is_, was in usual if str(is_) != str(was) for word in (option, str(is_))]
    return shlex.join(["isthmus", "agent", "leave", "--yes", *words])
