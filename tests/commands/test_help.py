"""The help of every command fits a terminal of 80 columns: examples are not wrapped, so they must be short."""

from __future__ import annotations

from collections.abc import Iterator

import click

from controlplane.cli.main import root

COLUMNS, LEAST = 80, 100


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """It and all below it."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from commands(below, click.Context(below, context, name, terminal_width=COLUMNS))


def test_no_line_of_a_help_text_is_wider_than_a_terminal() -> None:
    found = list(commands(root, click.Context(root, info_name="isthmus", terminal_width=COLUMNS)))
    assert len(found) > LEAST
    wide = [
        f"{context.command_path}: {line}"
        for context in found
        for line in context.command.get_help(context).splitlines()
        if len(line) > COLUMNS
    ]
    assert not wide, "\n".join(wide)
