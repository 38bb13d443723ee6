"""Next steps that can be pasted: a command with the options by which this one reached its cluster."""

from __future__ import annotations

import shlex

import click
from click.core import ParameterSource

from events.cli.options import BusContext

CARRIED = ("bus", "cluster", "creds", "ca", "tls_cert", "tls_key")


def hint(context: BusContext, command: str) -> str:
    """The command with the bus, cluster and credentials that were given as flags; the environment stays."""
    running = click.get_current_context(silent=True)
    if running is None:
        return command if context.cluster == "default" else f"{command} --cluster {context.cluster}"
    given = [
        f"--{name.replace('_', '-')} {shlex.quote(str(running.params[name]))}"
        for name in CARRIED
        if running.params.get(name) and running.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    return " ".join([command, *given])
