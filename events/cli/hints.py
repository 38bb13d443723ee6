"""Next steps that can be pasted: a command with the options by which this one reached its cluster."""

from __future__ import annotations

import re
import shlex

import click
from click.core import ParameterSource

CARRIED = ("bus", "cluster", "creds", "ca", "tls_cert", "tls_key")


_QUOTED = re.compile(r"\bisthmus((?: [a-z][a-z-]*)+)")


def reaching(text: str) -> str:
    """The text in which each quoted command has the flags by which the running one reached its cluster."""
    running = click.get_current_context(silent=True)
    flags = _given(running) if running is not None else []
    if running is None or not flags:
        return text
    root = running.find_root().command

    def completed(match: re.Match[str]) -> str:
        words, command, used = match[1].split(), root, 0
        for word in words:
            following = command.get_command(running, word) if isinstance(command, click.Group) else None
            if following is None:
                break
            command, used = following, used + 1
        if not any(param.name == "bus" for param in command.params):
            return match[0]
        return " ".join(["isthmus", *words[:used], *flags, *words[used:]])

    return _QUOTED.sub(completed, text)


def hint(cluster: str, command: str) -> str:
    """The command with the bus, cluster and credentials that were given as flags; the environment stays."""
    running = click.get_current_context(silent=True)
    if running is None:
        return command if cluster == "default" else f"{command} --cluster {cluster}"
    return " ".join([command, *_given(running)])


def _given(running: click.Context) -> list[str]:
    return [
        f"--{name.replace('_', '-')} {shlex.quote(str(running.params[name]))}"
        for name in CARRIED
        if running.params.get(name) and running.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
