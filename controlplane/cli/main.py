"""``isthmus``: the root command. It knows no other command; each package registers its own.

Commands come from the entry-point group ``isthmus.commands`` and are imported when they are called,
so that a node that installs only the agent's extra can run ``isthmus agent``, and no package has to
import another. This is also the only place where an error becomes text and an exit code:

====  =====================================================
0     done
1     refused, or a check failed
2     wrong usage
3     the bus or the controller cannot be reached
130   interrupted: Ctrl-C in what would have ended by itself
====  =====================================================

``up``, ``controller``, ``agent`` and the like run until they are stopped: SIGINT and SIGTERM are their ordinary
end, with 0.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click
import msgspec

from events.cli.lazy import LazyGroup, summarize
from events.cli.tables import escaped
from events.codes import CODES
from events.codes.extras import EXTRA_OF, install_line
from events.errors import IsthmusError, Usage

_WORD = re.compile(r"[a-z]{4,}")
_OURS = re.compile(r"ISTHMUS_|OTEL_")
_NOT_OURS = re.compile(r"is not (?:readable|writable|executable)")
AS_WHOM = "run it as root (sudo), or as the account that this belongs to"
GROUP = "isthmus.commands"
_OWN = (
    EntryPoint("status", "controlplane.cli.status:status", GROUP),
    EntryPoint("completion", "events.cli.completion:completion", GROUP),
    EntryPoint("version", "controlplane.cli.version:version", GROUP),
)
SECTIONS = {
    "Operate": (
        "status",
        "node",
        "cluster",
        "adopt",
        "clb",
        "entry",
        "mesh",
        "events",
        "replay",
        "trace",
        "plan",
        "version",
        "completion",
    ),
    "Run": (
        *("up", "controller", "kubernetes", "token", "join", "leave", "agent", "doctor"),
        *("config", "credentials", "deploy", "site"),
    ),
    "Try": ("lab", "churn"),
}
"""Headings of the help, each with its commands in order; what others register comes last."""


class Commands(LazyGroup):
    """A group whose commands are the registered entry points."""

    @staticmethod
    @cache
    def _entries() -> dict[str, EntryPoint]:
        found = {entry.name: entry for entry in entry_points(group=GROUP)}
        return {entry.name: entry for entry in _OWN} | found

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(self._entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load the command. Raises Refused when its role is not installed."""
        entry = self._entries().get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = entry.load()
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        return summarize(_configurable(cmd_name, command))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rest = set(self.list_commands(ctx))
        for heading, names in SECTIONS.items():
            self._write_section(ctx, formatter, heading, [name for name in names if name in rest])
            rest -= set(names)
        self._write_section(ctx, formatter, "Others", sorted(rest))

    def _write_section(
        self, ctx: click.Context, formatter: click.HelpFormatter, heading: str, names: Sequence[str]
    ) -> None:
        rows = []
        for name in names:
            try:
                command = self.get_command(ctx, name)
                text = command.get_short_help_str(limit=120) if command else ""
            except IsthmusError as error:
                text = f"({error.message})"
            rows.append((name, text))
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)


def _configurable(name: str, command: click.Command) -> click.Command:
    """Give the long-running roles their ``--config``."""
    from events.cli.config import ROLES, add_config

    for role, (first, *rest) in ROLES.items():
        if first == name:
            target = command
            for part in rest:
                target = target.commands[part]  # type: ignore[attr-defined]  # a group, by ROLES
            add_config(target, role)
    return command


def _missing(error: ModuleNotFoundError) -> IsthmusError:
    """A module that cannot be imported, told as the extra that brings it."""
    module = (error.name or "").split(".")[0]
    extra = EXTRA_OF.get(module)
    if extra is None:
        return IsthmusError("internal", f"the module {error.name!r} cannot be imported: {error}")
    return IsthmusError(
        "prerequisite_missing",
        f"this command needs {module!r}, which is not installed here; it comes with the extra {extra!r}. "
        f"Install that from where this copy came from: {install_line(extra)}",
        module=module,
        extra=extra,
    )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="isthmus")
def root() -> None:
    """Isthmus: one container network over clouds and data centres, with its whole history.

    \b
    Try it:         isthmus lab                 a two-site cluster on this machine
    Evaluate:       isthmus up                  bus and controller in one process
    Plan:           isthmus plan --cidr 10.200.0.0/16 --pods 64 --services 256
    Look:           isthmus status              isthmus node list
    Ask the past:   isthmus replay who --ip 10.200.7.9 --at yesterday

    Options of a command can be given as environment variables, for example ISTHMUS_BUS and
    ISTHMUS_CLUSTER. Exit codes: 0 done, 1 refused, 2 usage, 3 cannot reach the bus,
    130 interrupted (what runs until it is stopped ends with 0).
    """


def report(error: IsthmusError, *, as_json: bool) -> None:
    """Print an error: JSON on standard output for programs, a sentence and its remedy on standard error."""
    if as_json:
        body: dict[str, Any] = {
            "error": {"code": error.code, "message": error.message, "details": error.details}
        }
        click.echo(msgspec.json.encode(body, enc_hook=str).decode())
        return
    text = "\n".join(escaped(line) for line in error.message.split("\n"))
    click.echo(f"isthmus: {text} [{error.code}]", err=True)
    remedy = CODES[error.code].remedy
    if remedy and not says_already(error.message, remedy):
        click.echo(f"  → {remedy}", err=True)


def says_already(message: str, remedy: str) -> bool:
    """Whether a message has the way out in it, so that the code's general advice would only repeat it."""
    if "the message" in remedy:
        return True
    advice = set(_WORD.findall(remedy.lower())) - {"isthmus"}
    return 2 * len(advice & set(_WORD.findall(message.lower()))) > len(advice)


def main() -> None:
    """Entry point of the ``isthmus`` command."""
    _usable_streams()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        code = 0  # the reader (head, less) has gone; that is no error of ours
    except OSError as error:
        code = 1
        with suppress(OSError, ValueError):
            click.echo(f"isthmus: standard output cannot be written: {error.strerror}", err=True)
    _drop_what_is_left()
    sys.exit(code)


def _usable_streams() -> None:
    """Standard streams that a caller closed lead nowhere, lest the next file that is opened be taken for one.

    What a stream's encoding cannot say is said in plain ASCII.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="isthmus")


def _drop_what_is_left() -> None:
    """What a dead reader did not take is not tried again while the interpreter ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(arguments: list[str]) -> int:
    """Run a command; its exit code. Raises OSError when standard output is closed or full."""
    as_json, stdout = asks_for_a_document(arguments), sys.stdout
    try:
        _check_encoding(arguments)
        code = root.main(arguments, prog_name="isthmus", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except IsthmusError as error:
        report(error, as_json=as_json)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        if os.geteuid() != 0 and _NOT_OURS.search(error.format_message()):
            click.echo(f"  → {AS_WHOM}", err=True)
        return error.exit_code
    except SystemExit as error:
        if sys.stdout is not stdout:
            return 0  # click wraps it, and ends so, when the reader has gone
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (click.Abort, KeyboardInterrupt) as error:
        if not isinstance(error.__cause__, EOFError):
            return 130
        found = _of_an_end(error.__cause__)
        report(found, as_json=as_json)
        return found.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("ISTHMUS_DEBUG"):
            raise
        known = _missing(error) if isinstance(error, ModuleNotFoundError) else _of_the_caller(error)
        if known is None and isinstance(error, OSError) and error.filename is None:
            raise
        found = known or IsthmusError(
            "internal",
            f"unexpected {type(error).__name__}: {error} (ISTHMUS_DEBUG=1 shows where)",
        )
        report(found, as_json=as_json)
        return found.exit_code


def asks_for_a_document(arguments: Sequence[str]) -> bool:
    """Whether a program reads the answer: ``--json``, or ``-o json`` and ``-o yaml`` in any spelling."""
    if "--json" in arguments:
        return True
    joined = " ".join(arguments)
    return re.search(r"(?:^| )(?:-o ?|--output[ =])(?:json|yaml)(?: |$)", joined) is not None


def _check_encoding(arguments: Sequence[str]) -> None:
    """What was given, as arguments or in the environment, is text. Raises Usage."""
    given = [("the argument", argument) for argument in arguments]
    given += [
        (f"{name}, in the environment,", value) for name, value in os.environ.items() if _OURS.match(name)
    ]
    for what, text in given:
        if not text.isascii() and text.encode(errors="surrogateescape") != text.encode(errors="replace"):
            raise Usage("usage", f"{what} {text.encode(errors='backslashreplace').decode()} is no UTF-8")


def _of_an_end(error: EOFError) -> IsthmusError:
    """Something ended too soon; click takes that for a Ctrl-C, of which nobody is told."""
    if "marshal" not in str(error):
        return Usage("usage", "standard input ended before it answered: give --yes, or answer it")
    root_folder = Path(__file__).parents[2]
    return IsthmusError(
        "prerequisite_missing",
        "this installation holds byte code that was cut short, as a full disk leaves it. Remove what can be "
        f"made anew: find {shlex.quote(str(root_folder))} -name '*.pyc' -delete",
    )


def _of_the_caller(error: Exception) -> IsthmusError | None:
    """The error of a file or a text that the caller named, if it is one."""
    if isinstance(error, OSError) and error.filename is not None:
        whose = f"; {AS_WHOM}" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        return Usage("file_unusable", f"{escaped(str(error.filename))}: {error.strerror or error}{whose}")
    if type(error).__module__ == "sqlite3":  # not imported here: few commands need it
        return Usage("file_unusable", f"the database in the folder that was given cannot be used: {error}")
    if isinstance(error, UnicodeDecodeError):
        return Usage(
            "file_unusable", f"a file or the input is no UTF-8 text: {error.reason} at byte {error.start}"
        )
    return None
