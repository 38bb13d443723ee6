"""What the agent's command line says of encryption: options of ``run``, and ``isthmus agent rotate-key``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from events.cli.options import json_option
from events.cli.tables import print_json
from events.protocol.encryption import WIREGUARD_PORT
from nodeagent.commands.options import state_option

Command = TypeVar("Command", bound=Callable[..., Any])


def wireguard_options(command: Command) -> Command:
    """The options of `isthmus agent run` that concern encryption and the node's key."""
    for option in reversed(
        (
            click.option(
                "--wireguard",
                type=click.Choice(["auto", "kernel", "userspace", "off"]),
                default="auto",
                show_default=True,
                help="What encrypts packets to peers where the cluster wants it.",
            ),
            click.option(
                "--wireguard-port",
                type=int,
                default=WIREGUARD_PORT,
                show_default=True,
                help="First of four UDP ports of encrypted packets.",
            ),
            click.option(
                "--rotate-key",
                "rotate_key_days",
                type=int,
                default=0,
                show_default=True,
                metavar="DAYS",
                help="Replace the node's key when it is so old; 0: only by `isthmus agent rotate-key`.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command("rotate-key")
@state_option
@json_option
def rotate_key_command(state_dir: Path, as_json: bool) -> None:
    """Give this node another key; the running agent announces it within a second, else the next one does.

    From the moment that the log has it, it and the one before are valid side by side. When every peer has a
    session with the new one, the one before goes: no packet is lost, and none is sent in the clear.

    \b
    Example:
      isthmus agent rotate-key
    """
    from events.errors import Refused
    from nodeagent.membership.node_key import KEY_FILE, ask_for_another

    if not (state_dir / KEY_FILE).exists():
        raise Refused(
            "prerequisite_missing",
            f"{state_dir} has no key of an agent: its first start makes one; or name the folder by --state-dir",
        )
    key = ask_for_another(state_dir)
    if as_json:
        print_json({"key": key})
    else:
        click.echo(f"the next key is {key}; `isthmus agent status` says when it is used")
