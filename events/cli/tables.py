"""What every ``isthmus`` command prints: tables for people and pipes, JSON and YAML for programs.

A table in a pipe is plain: one line a row, columns apart by three spaces, ``-`` for nothing, never wrapped. On
a terminal it has a bold head, and when it is too wide columns are left out or prose is shortened, as each
command says; an address, a uid, a code or a time is never cut. Control characters of others are shown
escaped. Rich is imported only when something is drawn in colour: ``--help`` and ``--json`` stay fast.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from events.errors import Usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = "   "
SHORTEST = 8
"""Characters that a shortened cell keeps."""
WHOLE = re.compile(r"\d+\.\d+\.|[0-9a-f]{8}-|[0-9a-f]+:[0-9a-f:]+")
"""How a cell begins that is never cut: an address, a uid."""
NOTHING = "-"
META = "isthmus.output"
"""Key in click's ``meta`` of what :mod:`events.cli.output` was told; see :class:`Output`."""

_PLAIN = {"→": "->", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": ".", "≤": "<=", "≥": ">="} | {
    "“": '"',
    "”": '"',
    "’": "'",
}
"""What a stream that knows only ASCII is given instead; ``?`` for all else."""


class Output(msgspec.Struct):
    """How to print: ``form`` is ``""`` (a table), ``wide``, ``name``, ``json`` or ``yaml``."""

    form: str = ""
    listing: bool = False
    headers: bool = True
    sort_by: str = ""


def output() -> Output:
    """What the running command was told."""
    context = click.get_current_context(silent=True)
    found = context.meta.get(META) if context is not None else None
    return found if isinstance(found, Output) else Output()


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def say_in_ascii(error: UnicodeError) -> tuple[str, int]:
    """For streams that know only ASCII: the nearest plain spelling. A codec error handler.

    Raises the error again when it is not about encoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(one, "?") for one in error.object[error.start : error.end]), error.end


codecs.register_error("isthmus", say_in_ascii)


def _shown(text: str) -> str:
    """JSON or YAML that says the same, with what a terminal would act upon (direction marks, C1) as escapes."""
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """One document on standard output: JSON, indented when a person is likely to look, or YAML if asked for."""
    text = msgspec.json.encode(value, enc_hook=str)
    if output().form == "yaml":
        click.echo(_shown("\n".join(_yaml(msgspec.json.decode(text)))))
        return
    if on_terminal():
        text = msgspec.json.format(text, indent=2)
    click.echo(_shown(text.decode()))


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """YAML in blocks; every text is quoted as in JSON, which YAML reads the same."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            head = f"{indent}{_scalar(key) if not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_-]*', key) else key}:"
            if isinstance(item, dict | list) and item:
                yield head
                yield from _yaml(item, f"{indent}  ")
            else:
                yield f"{head} {_scalar(item)}"
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _yaml(item, f"{indent}  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest
    else:
        yield f"{indent}{_scalar(value)}"


def _scalar(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def console(*, stderr: bool = False) -> Console:
    """A rich console. Without a terminal it is plain text, 120 columns wide unless COLUMNS says otherwise.

    Printing on it raises BrokenPipeError when the reader has gone.
    """
    from rich.console import Console

    class Quiet(Console):
        """Leaves it to the root command what a reader that has gone means; rich would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    told = os.environ.get("COLUMNS", "").strip()
    width = int(told) if told.isascii() and told.isdigit() and 0 < int(told) < 100_000 else 120
    terminal = stream is not None and stream.isatty()
    return Quiet(stderr=stderr, highlight=False, soft_wrap=False, width=None if terminal else width)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    right: Iterable[str] = (),
    empty: str = "nothing to show",
    wide: Collection[str] = (),
    drop: Sequence[str] = (),
    shorten: Sequence[str] = (),
) -> None:
    """A table. ``right`` names the columns of numbers; cells are plain text, never markup.

    ``wide`` columns are shown with ``-o wide`` only. Where a terminal is too narrow the columns of ``drop``
    go first, in that order, then those of ``shorten`` are cut: prose only. A second column without a name
    makes a list of facts. Raises Usage(usage) when ``--sort-by`` names no column.
    """
    how, styled = output(), on_terminal()
    cells = [[_cell(cell, keep_style=styled) for cell in row] for row in rows]
    if len(columns) > 1 and not columns[1]:
        _facts(columns[0], cells, title=title)
        return
    if how.listing:
        cells = _sorted(columns, cells, how.sort_by)
        if how.form == "name":
            for row in cells:
                click.echo(_text(row[0]))
            return
    if title and (styled or not how.listing) and how.headers:
        click.echo(click.style(title, bold=True) if coloured() else title)
    if not cells:
        click.echo(empty, err=how.listing and not styled)
        return
    shown = [n for n, name in enumerate(columns) if name not in wide or how.form == "wide"]
    heads = [name.upper() if name else "" for name in columns]
    widths = {n: max(len(heads[n]), *(len(_text(row[n])) for row in cells)) for n in shown}
    if styled and how.form != "wide":
        shown, widths = _fitted(columns, cells, shown, widths, drop=drop, shorten=shorten)
    aligned = {n for n in shown if columns[n] in set(right)}
    if how.headers:
        line = _line([heads[n] for n in shown], [widths[n] for n in shown], [n in aligned for n in shown])
        click.echo(click.style(line, bold=True) if coloured() else line)
    for row in cells:
        parts = [row[n] for n in shown]
        _write(parts, [widths[n] for n in shown], [n in aligned for n in shown])


def _fitted(
    columns: Sequence[str],
    cells: Sequence[Sequence[str | Text]],
    shown: list[int],
    widths: dict[int, int],
    *,
    drop: Sequence[str],
    shorten: Sequence[str],
) -> tuple[list[int], dict[int, int]]:
    room = shutil.get_terminal_size().columns

    def excess() -> int:
        return sum(widths[n] for n in shown) + len(GAP) * (len(shown) - 1) - room

    names = list(columns)
    for name in drop:
        if excess() > 0 and name in names:
            shown = [n for n in shown if columns[n] != name]
    for name in shorten:
        for n in shown:
            if columns[n] == name and excess() > 0:
                texts = (_text(row[n]) for row in cells)
                whole = max((len(text) for text in texts if WHOLE.match(text)), default=0)
                widths[n] = max(SHORTEST, len(name), whole, widths[n] - excess())
    return shown, widths


def _cell(value: object, *, keep_style: bool) -> str | Text:
    """One line of printable text; a styled one stays styled for a terminal."""
    if value is None:
        return NOTHING
    text = value if isinstance(value, str) else str(value)
    text = escaped(text) or NOTHING
    if keep_style and not isinstance(value, str) and hasattr(value, "spans") and text == str(value):
        return value  # type: ignore[return-value]  # rich's Text
    return text


def escaped(text: str) -> str:
    """Others' words on one line: what moves the cursor, and what cannot be shown, is escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _text(cell: str | Text) -> str:
    return cell if isinstance(cell, str) else cell.plain


def _line(parts: Sequence[str], widths: Sequence[int], aligned: Sequence[bool]) -> str:
    padded = [
        part.rjust(width) if right else part.ljust(width)
        for part, width, right in zip(parts, widths, aligned, strict=True)
    ]
    return GAP.join(padded).rstrip()


def _write(parts: Sequence[str | Text], widths: Sequence[int], aligned: Sequence[bool]) -> None:
    cut = [_shortened(text, width) for text, width in zip(map(_text, parts), widths, strict=True)]
    if all(isinstance(part, str) for part in parts) or not coloured():
        click.echo(_line(cut, widths, aligned))
        return
    from rich.text import Text

    line = Text()
    for number, (part, text, width, right) in enumerate(zip(parts, cut, widths, aligned, strict=True)):
        styled = part if isinstance(part, Text) and part.plain == text else Text(text)
        pad = " " * (width - len(text))
        line.append(GAP if number else "")
        line.append_text(Text.assemble(pad, styled) if right else Text.assemble(styled, pad))
    line.rstrip()
    console().print(line, soft_wrap=True)


def counted(number: int, thing: str) -> str:
    """``1 node``, ``3,001 nodes``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _shortened(text: str, width: int) -> str:
    """At most ``width`` characters: prose loses whole words, so that no address in it is cut."""
    if len(text) <= width:
        return text
    if " " not in text:
        return f"{text[: width - 1]}…"
    kept = text[: width - 1].rpartition(" ")[0].rstrip()
    return f"{kept} …" if kept else "…"


def _facts(name: str, rows: Sequence[Sequence[str | Text]], *, title: str) -> None:
    head = title or name
    if head:
        click.echo(click.style(head, bold=True) if coloured() else head)
    width = max((len(_text(row[0])) for row in rows), default=0) + 1
    for key, value in ((row[0], row[1]) for row in rows):
        lead = f"{_text(key)}:".ljust(width) + "  "
        if isinstance(value, str) or not coloured():
            click.echo(lead + _text(value))
            continue
        from rich.text import Text

        console().print(Text.assemble(lead, value), soft_wrap=True)


def coloured() -> bool:
    """Whether colours are wanted: on a terminal, unless NO_COLOR is set."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _sorted(columns: Sequence[str], cells: list[list[str | Text]], sort_by: str) -> list[list[str | Text]]:
    if not sort_by:
        return cells
    names = [_word(name) for name in columns]
    if _word(sort_by) not in names:
        raise Usage("usage", f"--sort-by {sort_by!r} is no column; there are: {', '.join(names)}")
    position = names.index(_word(sort_by))
    return sorted(cells, key=lambda row: _natural(_text(row[position])))


def _word(name: str) -> str:
    return name.strip().lower().replace(" ", "-").replace("_", "-")


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Numbers by their value wherever they stand: addresses and names with numbers sort as people expect."""
    parts = re.findall(r"\d+|\D+", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


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
    return escaped(str(value))
