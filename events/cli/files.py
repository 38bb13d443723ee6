"""Parameters of commands that name a file to read; ``-`` is standard input."""

from __future__ import annotations

import sys
from typing import Any

import click

from events.errors import Usage
from events.input_files import read_up_to

STANDARD_INPUT = "-"


class Input:
    """A file that was named on the command line; it is opened when it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the beginning. Raises Usage(file_unusable)."""
        try:
            if self.name == STANDARD_INPUT:
                return sys.stdin.buffer.read(size)
            return read_up_to(self.name, size)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise Usage("file_unusable", f"{self.name[:200]!r}: {why}") from error

    def read_text(self, size: int) -> str:
        """The same as text. Raises Usage(file_unusable)."""
        try:
            return self.read(size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1}"
            raise Usage("file_unusable", f"{self.name[:200]!r} is no UTF-8 text ({where})") from error


class InputFile(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A file to read, or ``-``."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Input:  # noqa: ARG002
        return value if isinstance(value, Input) else Input(str(value))

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[click.shell_completion.CompletionItem]:
        return [click.shell_completion.CompletionItem(incomplete, type="file")]


INPUT_FILE = InputFile()
