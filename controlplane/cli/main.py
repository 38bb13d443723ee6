"""``isthmus``: the root command. It knows no other command; each package registers its own.

Commands come from the entry-point group ``isthmus.commands`` and are imported when they are called,
so that a node that installs only the agent's extra can run ``isthmus agent``, and no package has to
import another. This is also the only place where an error becomes text and an exit code:

====  =====================================================
0     done
1     refused, or a check failed
2     wrong usage
3     the bus or the controller cannot be reached
130   interrupted
====  =====================================================
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
import msgspec

from events.cli.options import suggesting
from events.codes import CODES
from events.errors import IsthmusError

_EXTRA_OF = {
    "aiosqlite": "controller",
    "cryptography": "controller",
    "litestar": "console",
    "matplotlib": "replay",
    "pyroute2": "agent",
    "uvicorn": "console",
    "zstandard": "replay",
}


class Commands(click.Group):
    """A group whose commands are the registered entry points."""

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group="isthmus.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(self._entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = self._entries().get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = entry.load()
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        return _configurable(cmd_name, command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # click suggests only among commands that are loaded; here none is before its call.
            raise suggesting(error, args[0], self._entries(), ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            try:
                command = self.get_command(ctx, name)
                text = command.get_short_help_str(limit=90) if command else ""
            except IsthmusError as error:
                text = f"({error.message})"
            rows.append((name, text))
        if rows:
            with formatter.section("Commands"):
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
    module = (error.name or "").split(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra is None:
        return IsthmusError("internal", f"the module {error.name!r} cannot be imported: {error}")
    return IsthmusError(
        "prerequisite_missing",
        f"this command needs {module!r}, which is not installed: pip install 'isthmus[{extra}]'",
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
    Look:           isthmus node list           isthmus cluster show
    Ask the past:   isthmus replay who --ip 10.200.7.9 --at yesterday

    Options of a command can be given as environment variables, for example ISTHMUS_BUS and
    ISTHMUS_CLUSTER. Exit codes: 0 done, 1 refused, 2 usage, 3 cannot reach the bus.
    """


def report(error: IsthmusError, *, as_json: bool) -> None:
    """Print an error: JSON on standard output for programs, a sentence and its remedy on standard error."""
    if as_json:
        body: dict[str, Any] = {
            "error": {"code": error.code, "message": error.message, "details": error.details}
        }
        click.echo(msgspec.json.encode(body, enc_hook=str).decode())
        return
    click.echo(f"isthmus: {error.message} [{error.code}]", err=True)
    remedy = CODES[error.code].remedy
    if remedy and remedy not in error.message:
        click.echo(f"  → {remedy}", err=True)


def main() -> None:
    """Entry point of the ``isthmus`` command."""
    as_json = "--json" in sys.argv
    try:
        code = root.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except IsthmusError as error:
        report(error, as_json=as_json)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("ISTHMUS_DEBUG"):
            raise
        defect = IsthmusError(
            "internal",
            f"unexpected {type(error).__name__}: {error} (ISTHMUS_DEBUG=1 shows where)",
        )
        report(defect, as_json=as_json)
        sys.exit(defect.exit_code)
