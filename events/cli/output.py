"""The options that say how a command prints: ``--json``, ``-o``, ``--no-headers``, ``--sort-by``, ``--watch``.

They are kept in click's context and read by :mod:`events.cli.tables`; a command sees only ``as_json``.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from events.cli.tables import META, Output, on_terminal

Function = TypeVar("Function", bound=Callable[..., Any])

WATCH_S = 2.0
PROGRAMS = ("json", "yaml")
PEOPLE = ("wide", "name")


def say(line: str, *, err: bool = False) -> None:
    """A line about work that goes on: a reader who has gone, or a disk that is full, breaks nothing off.

    What is printed at the end of the work still fails then, and so does the command.
    """
    with contextlib.suppress(OSError):
        click.echo(line, err=err)


def _settings(context: click.Context) -> Output:
    found: Output = context.meta.setdefault(META, Output())
    return found


def _take(field: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def take(context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value is not None:
            setattr(_settings(context), field, value)
        return value

    return take


def _take_json(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if value:
        _settings(context).form = "json"
    return value or _settings(context).form in PROGRAMS


_json_flag = click.option(
    "--json", "as_json", is_flag=True, callback=_take_json, help="JSON for programs; the same as -o json."
)


def _form_option(choices: tuple[str, ...]) -> Callable[[Function], Function]:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(choices),
        is_eager=True,
        expose_value=False,
        callback=_take("form"),
        help="How to print the answer. json and yaml carry everything: `jq` picks fields out of them.",
    )


def json_option(function: Function) -> Function:
    """Add ``--json`` and ``-o json|yaml``; the command receives ``as_json: bool`` and prints one document."""
    function = _json_flag(function)
    taken = {name for option in getattr(function, "__click_params__", ()) for name in option.opts}
    return function if taken & {"-o", "--output"} else _form_option(PROGRAMS)(function)


def table_option(function: Function) -> Function:
    """As :func:`json_option`, and ``-o wide`` for a table that a terminal shortens."""
    return _form_option((*PROGRAMS, "wide"))(_json_flag(function))


def listing_options(function: Function) -> Function:
    """The options of a list; the command receives ``as_json: bool`` and prints one table or one document."""

    @click.option(
        "--no-headers",
        "headers",
        flag_value=False,
        default=None,
        expose_value=False,
        callback=_take("headers"),
        help="Leave the head of the table out.",
    )  # fmt: skip
    @click.option(
        "--sort-by", metavar="COLUMN", expose_value=False, callback=_take("sort_by"), help="Order by a column."
    )
    @click.option("--watch", "-w", is_flag=True, help=f"Print it again every {WATCH_S:g} s, until Ctrl-C.")
    @_json_flag
    @_form_option((*PROGRAMS, *PEOPLE))
    @wraps(function)
    def wrapper(*args: Any, watch: bool, **rest: Any) -> Any:
        _settings(click.get_current_context()).listing = True
        if watch:
            return watching(lambda: function(*args, **rest))
        return function(*args, **rest)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


def watching(show: Callable[[], Any], *, every_s: float = WATCH_S) -> None:
    """Print it again and again, until Ctrl-C: on a terminal in place, in a pipe only the lines that are new."""
    before: list[str] = []
    while True:
        if on_terminal():
            click.clear()
            show()
        else:
            page = io.StringIO()
            with contextlib.redirect_stdout(page):
                show()
            lines = page.getvalue().splitlines()
            for line in lines:
                if line not in before:
                    click.echo(line)
            before = lines
        time.sleep(every_s)
