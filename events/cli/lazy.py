"""A group whose commands are loaded when they are called."""

from __future__ import annotations

import click

from events.cli.options import suggesting


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
