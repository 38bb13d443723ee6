"""``isthmus replay``: the command line of the replay tool.

The group is made here; each command's module is imported when the command is called, and what a
command needs is imported when it runs, so that a question is answered within a few tenths of a second.
"""

from __future__ import annotations

from importlib import import_module

import click

from events.cli.lazy import LazyGroup, summarize

_ORDER = (
    "log",
    "state",
    "who",
    "ways",
    "history",
    "blame",
    "explain",
    "diff",
    "bisect",
    "stats",
    "whatif",
    "verify",
    "export",
    "import",
    "capsule",
    "sample",
    "plot",
)
"""Each command is ``<name>_command`` in the module of its name, or in that which ``_MODULES`` says."""

_MODULES = {"import": "import_", "blame": "history"}


class _Lazy(LazyGroup):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_ORDER)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _ORDER:
            return None
        module = import_module("replay.cli." + _MODULES.get(cmd_name, cmd_name))
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return summarize(command)


@click.group(cls=_Lazy)
def replay() -> None:
    """Every question about the past, answered and proven.

    Works on the live stream (--bus, --cluster; read-only credentials are enough) and on an archive
    file with no bus at all (--archive FILE). The same fold as the controller's answers.

    WHEN is a sequence (4711), 'now', 'start', an ISO time (2026-03-02T14:00+08:00),
    '14:00', 'yesterday 14:00', 'monday 9:30', '-2h' or '3d ago'. Times without a zone
    are read in --tz (default: this machine's zone), and every time shown names its zone.

    \b
    isthmus replay who --ip 10.200.7.9 --at 'yesterday 14:00'
    isthmus replay history node idc-7
    isthmus replay export prod.isthmus && \\
        isthmus replay verify --archive prod.isthmus
    """
