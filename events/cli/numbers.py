"""Numbers as they are printed are numbers as they are typed: ``6,121`` and ``#6121`` are 6121."""

from __future__ import annotations

import math
import re
from typing import Any

import click

_PRINTED = re.compile(r"#?(\d{1,3}(?:,\d{3})+|\d+)", re.ASCII)
LARGEST = 10**18


def printed_number(text: str) -> int | None:
    """The number, or None when the text is none (or beyond any sequence)."""
    found = _PRINTED.fullmatch(text.strip())
    if found is None or len(found[1]) > 25:
        return None
    number = int(found[1].replace(",", ""))
    return number if number <= LARGEST else None


class Sequence(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A sequence or a count on the command line."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number = printed_number(str(value))
        if number is None:
            self.fail(f"{str(value)[:40]!r} is not a number like 6121 or 6,121", param, ctx)
        return number


SEQUENCE = Sequence()


class Finite(click.FloatRange):
    """A number within bounds; neither infinity nor "nan", which no comparison finds out of bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{str(value)[:40]!r} is no number", param, ctx)
        return number
