"""At the start, while the process may still load programs: the mode, and what came of it."""

from __future__ import annotations

from events.errors import IsthmusError
from nodeagent.config import FastPathMode
from nodeagent.fastpath import programs
from nodeagent.fastpath.programs import Programs

SWITCHED_OFF = "switched off (--fastpath off)"


def prepare(mode: FastPathMode) -> tuple[Programs | None, str]:
    """The loaded programs, or why there are none.

    Raises IsthmusError (of :func:`nodeagent.fastpath.programs.load`) if they are required.
    """
    if mode == "off":
        return None, SWITCHED_OFF
    try:
        return programs.load(), ""
    except IsthmusError as error:
        if mode == "require":
            raise
        return None, error.message
