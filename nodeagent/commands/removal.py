"""Taking away what is ours from a node, or a part of it: clean, give-back, forget, new-identity."""

from __future__ import annotations

from pathlib import Path

import click

from events.cli.options import confirm, json_option, run
from events.cli.tables import print_json
from nodeagent.commands.options import cni_option, device_option, state_option


@click.command("clean")
@state_option
@cni_option
@device_option
@click.option("--for", "release", type=click.Choice(["0.2.0"]), help="Only what this release does not know.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def clean_command(
    *, state_dir: Path, cni_dir: Path, device: str, release: str | None, yes: bool, as_json: bool
) -> None:
    """Remove everything of ours from this node: device, rows, firewall, CNI file, state. On purpose only.

    The cluster is not told: `isthmus agent leave` or `isthmus node remove` does that. Pods lose their peers.

    With --for 0.2.0 only that goes which an agent of that release would leave for good: the fast path,
    devices of encryption and of ways through NAT, direct routes. Packets go on by the tunnel.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent clean --yes
    """
    from nodeagent.clean import clean, clean_newer

    confirm("Pods on this node lose the overlay. Go on?", yes=yes or release is not None)
    removed = run(clean_newer(state_dir, device) if release else clean(state_dir, cni_dir, device))
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo("\n".join(f"removed {what}" for what in removed) or "nothing of ours was here")


@click.command("give-back")
@state_option
@cni_option
@device_option
@click.option("--to", "old", default="flannel.1", show_default=True, metavar="DEVICE",
              help="The name that the device had.")  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def give_back_command(
    *, state_dir: Path, cni_dir: Path, device: str, old: str, yes: bool, as_json: bool
) -> None:
    """Give a node that was taken over (`--take-over`) back to flannel, while its packets flow.

    Stop the agent first, and start flannel behind it. The node stays a member: other nodes' rows towards it are
    right in both networks.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent give-back --yes
    """
    from nodeagent.clean import give_back

    confirm("Flannel's device, routes, rules and CNI file come back. Go on?", yes=yes)
    done = run(give_back(state_dir, cni_dir, device, old))
    if as_json:
        print_json({"done": done})
    else:
        click.echo("\n".join(done) or "nothing of ours was here")


@click.command("forget")
@state_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def forget_command(state_dir: Path, yes: bool) -> None:
    """Forget the log that was followed; keep every row, the firewall and the node's identity.

    For `log_replaced`: the bus was restored from a backup that misses what this node has seen. Stop the
    agent, forget, start it: it reads the log that the bus has now and writes only what differs.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent forget
    """
    from nodeagent.clean import forget

    confirm("The log on the bus becomes the truth for this node. Go on?", yes=yes)
    there = forget(state_dir)
    click.echo(
        "the followed log is forgotten; the rows are as they were"
        if there
        else f"no log was followed in {state_dir}"
    )


@click.command("new-identity")
@state_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def new_identity_command(state_dir: Path, yes: bool) -> None:
    """Give this installation a new uid: for a cloned machine, a fenced uid, or damaged identity files.

    Started again, the agent joins as a new node and gets a new range; what runs here with the old one it says.

    \b
    Example: systemctl stop isthmus-agent && isthmus agent new-identity --yes
    """
    from nodeagent.clean import new_identity

    confirm("Join anew, with another uid and another range?", yes=yes)
    click.echo(f"the uid is {new_identity(state_dir)} from now on")
