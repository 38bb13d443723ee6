"""At the start, while the process may still load programs: the mode, and what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

from events.errors import IsthmusError, Refused
from nodeagent.config import FastPathMode
from nodeagent.fastpath import programs
from nodeagent.fastpath.programs import Programs

SWITCHED_OFF = "switched off (--fastpath off)"


class Prepared(NamedTuple):
    """The loaded programs, or why there are none, and what hung of ours: devices by program."""

    loaded: Programs | None
    why_not: str
    earlier: Mapping[int, frozenset[int]]


NOTHING = Prepared(None, SWITCHED_OFF, {})


def prepare(mode: FastPathMode) -> Prepared:
    """What the agent begins with.

    Raises IsthmusError (of :func:`nodeagent.fastpath.programs.load`) if the programs are required.
    """
    earlier = _earlier()
    if mode == "off":
        return NOTHING._replace(earlier=earlier)
    try:
        return Prepared(programs.load(), "", earlier)
    except IsthmusError as error:
        if mode == "require":
            raise
        return Prepared(None, error.message, earlier)


def _earlier() -> dict[int, frozenset[int]]:
    """Programs of ours that hang here, whether or not the state directory knows of them.

    A process without CAP_SYS_ADMIN may not look: it finds none.
    """
    found: dict[int, frozenset[int]] = {}
    with contextlib.suppress(Refused):
        for number, index, _ in programs.hanging():
            if number in found or programs.is_ours(number):
                found[number] = found.get(number, frozenset()) | {index}
    return found
