"""``isthmus config``: check, show and write configuration files."""

from __future__ import annotations

import textwrap
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import msgspec

from events.cli.config import ROLES, add_config, effective, is_secret, load, options_of
from events.cli.options import json_option
from events.cli.tables import print_json, print_table
from events.errors import IsthmusError

role_argument = click.argument("role", type=click.Choice(sorted(ROLES)))
file_argument = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


def command_of(role: str) -> click.Command:
    """The command of a role, by its entry point. Raises IsthmusError(prerequisite_missing)."""
    first, *rest = ROLES[role]
    for entry in entry_points(group="isthmus.commands", name=first):
        try:
            command: click.Command = entry.load()
        except ModuleNotFoundError as error:
            raise IsthmusError(
                "prerequisite_missing", f"the role {role} needs {error.name!r}, which is not installed here"
            ) from error
        for name in rest:
            command = command.commands[name]  # type: ignore[attr-defined]  # a group, by ROLES
        return add_config(command, role)
    raise IsthmusError("internal", f"no command is registered for the role {role}")


@click.group()
def config() -> None:
    """Check, show and write configuration files.

    \b
    A role's file holds the options of its command, without the dashes:
      bus = "tls://10.0.0.5:4222"
      cluster = "prod"
    The environment overrides the file, and flags override both.

    \b
    Begin:   isthmus config example agent > agent.toml
    Check:   isthmus config check agent agent.toml
    Look:    isthmus config show agent --file agent.toml --effective
    """


@config.command()
@role_argument
@file_argument
@json_option
def check(*, role: str, file: Path, as_json: bool) -> None:
    """Check a file; every fault is listed with its line. Exit 2 when there is one.

    \b
    Example: isthmus config check agent /etc/isthmus/agent.toml
    """
    values = load(file, command_of(role))
    if as_json:
        print_json({"role": role, "file": str(file), "settings": len(values), "faults": []})
    else:
        click.echo(f"{file}: {len(values)} setting(s) of the role {role}, no fault")


@config.command(context_settings={"ignore_unknown_options": True})
@role_argument
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), help="The role's file.")
@click.option("--effective", "all_of_them", is_flag=True, help="Also what is not set: the defaults.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@json_option
def show(*, role: str, file: Path | None, all_of_them: bool, flags: tuple[str, ...], as_json: bool) -> None:
    """What a run would use, and where each value comes from. Secrets are masked.

    \b
    Example: isthmus config show agent --file agent.toml --effective -- --site ams
    """
    rows = [row for row in effective(command_of(role), file, flags) if all_of_them or row.source != "default"]
    if as_json:
        print_json([{"name": r.name, "value": _plain(r.value), "source": r.source} for r in rows])
        return
    print_table(
        ("Setting", "Value", "From"),
        [(row.name, "" if row.value is None else row.value, row.source) for row in rows],
        empty="nothing is set; --effective shows the defaults",
    )


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=str)


@config.command()
@role_argument
def example(*, role: str) -> None:
    """A file with every setting explained and commented out.

    \b
    Example: isthmus config example controller > controller.toml
    """
    click.echo(example_text(role))


def example_text(role: str) -> str:
    """The text of a file in which everything has its default."""
    command = command_of(role)
    parts = [
        f"# Configuration of `isthmus {' '.join(ROLES[role])}`. The environment and flags override it.",
        f"# Check it with: isthmus config check {role} FILE",
    ]
    for key, option in options_of(command).items():
        comment = textwrap.wrap(option.help or "", 96, initial_indent="# ", subsequent_indent="# ")
        if isinstance(option.type, click.Choice):
            comment.append(f"# One of: {', '.join(str(choice) for choice in option.type.choices)}")
        if option.envvar:
            comment.append(f"# Environment: {option.envvar}")
        parts.append("\n".join([*comment, f"# {key} = {_toml(key, option)}"]))
    return "\n\n".join(parts)


def _toml(key: str, option: click.Option) -> str:
    default = None if callable(option.default) else option.default
    if is_secret(key):
        return '"…"'
    if option.is_flag:
        return "true" if default is True else "false"
    if option.multiple:
        return "[]"
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        return str(default) if isinstance(default, int | float) else "0"
    if default is None or not isinstance(default, str | int | float | Path):
        return '""'
    return f'"{default}"'
