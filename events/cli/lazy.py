"""A group whose commands are loaded when they are called."""

from __future__ import annotations

import re

import click

from events.cli.options import suggesting

_SENTENCE = re.compile(r".*?[.](?=\s|$)", re.DOTALL)


def summarize(command: click.Command) -> click.Command:
    """Let lists of commands show the whole first sentence of this one and those below: click cuts it short."""
    text = (command.help or "").split("\f")[0].strip().split("\n\n")[0]
    if text and not command.short_help:
        found = _SENTENCE.match(text)
        command.short_help = " ".join((found[0] if found else text).split()).rstrip(".:")
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        summarize(each)
    return command


class LazyGroup(click.Group):
    """Subclasses say what there is (:meth:`list_commands`) and load it (:meth:`get_command`)."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name. Raises UsageError, which suggests the nearest ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # click suggests only among commands that are loaded; here none is before its call.
            raise suggesting(error, args[0], self.list_commands(ctx), ctx) from None
