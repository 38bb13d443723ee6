"""What ``whatif`` is asked and what it answers, as values; :mod:`replay.queries.whatif` finds the answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from events.errors import Usage
from events.protocol.commands import COMMANDS, Command
from replay.history import Point

LIST_LIMIT = 1000
"""Most names in each list of the answer; the counts are exact."""

_COMMANDS = {command.name: command for command in COMMANDS}


class OtherPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What would be different. Empty values stay as recorded."""

    container_cidr: str = ""
    pods_per_node: int = 0
    services: int = 0
    appended: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def replans(self) -> bool:
        """Whether the ranges are cut anew."""
        return bool(self.container_cidr or self.pods_per_node or self.services)


class Unserved(msgspec.Struct, frozen=True, kw_only=True):
    """A node that would have been refused. ``served_at`` None: not before the end or its leaving."""

    node: str
    code: str
    message: str
    sequence: int
    since: datetime
    served_at: datetime | None


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A node that would end with another range. Empty: with none (or: not a member)."""

    node: str
    recorded: str
    imagined: str


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """Both outcomes at ``until``. ``exhausted_at`` is the first moment without a free range, if any."""

    fork: Point
    until: Point
    plan: dict[str, Any]
    recorded_plan: dict[str, Any]
    recorded: dict[str, int]
    imagined: dict[str, int]
    peak_in_use: int
    exhausted_at: datetime | None
    exhausted_sequence: int
    refused: int
    unserved: list[Unserved]
    extra: list[dict[str, Any]]
    differing: int
    moved: list[Moved]


def parse_commands(lines: bytes) -> tuple[Command, ...]:
    """Commands from JSON lines ``{"command": "join", …fields…}``. Raises Usage."""
    found: list[Command] = []
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
            shape = _COMMANDS.get(str(fields.pop("command", "")))
            if shape is None:
                raise Usage("usage", f'line {number}: "command" is none of {", ".join(sorted(_COMMANDS))}')
            found.append(msgspec.convert(fields, shape))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Usage("usage", f"line {number}: {error}") from error
    return tuple(found)
