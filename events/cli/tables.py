"""What every ``isthmus`` command prints: tables for people, JSON for programs.

Rich is imported only when something is drawn: ``--help`` and ``--json`` stay fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console


def print_json(value: Any) -> None:
    """One JSON document on standard output, indented when a person is likely to look."""
    text = msgspec.json.encode(value)
    if sys.stdout.isatty():
        text = msgspec.json.format(text, indent=2)
    click.echo(text.decode())


def console(*, stderr: bool = False) -> Console:
    """A rich console. Without a terminal it is plain text, 120 columns wide unless COLUMNS says otherwise."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else int(os.environ.get("COLUMNS", "120"))
    return Console(stderr=stderr, highlight=False, soft_wrap=False, width=width)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    right: Iterable[str] = (),
    empty: str = "nothing to show",
) -> None:
    """A table for people. ``right`` names the columns of numbers; cells are plain text, never markup.

    Columns that all have no name make a list of facts, without a head.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    aligned = set(right)
    table = Table(box=SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in aligned else "left", overflow="fold")
    count = 0
    for row in rows:
        count += 1
        table.add_row(*[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row])
    target = console()
    if title:  # by itself, not as the table's: there it would be wrapped to the width of the table
        target.print(Text(title, style="bold"), soft_wrap=True)
    target.print(table if count else Text(empty, style="dim"))


def fields_line(fields: Mapping[str, Any], *, hidden: Collection[str] = ()) -> str:
    """An event's fields in one line for a person: ``key=value``, nested ones as ``{key=value}``.

    Empty values and the ``hidden`` keys, which other columns show, are left out.
    """
    return " ".join(
        f"{key}={_plain(value)}"
        for key, value in fields.items()
        if key not in hidden and value not in ("", (), [], {}, None)
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + fields_line(value) + "}"
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    return str(value)
