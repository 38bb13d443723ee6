"""Whatever a command is started in: no traceback, nothing internal, an exit code that means something.

Every command that the parser has, so that a new one is tried by itself: in one of the surroundings, another
for each command; with ``ISTHMUS_HYPOTHESIS=explore`` in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.commands import surroundings
from tests.commands.surroundings import HARMLESS, RUN_ON, SURROUNDINGS, Case
from tests.nodeagent.sandbox import LIMIT_S, inside, sh
from tests.service.up import PROGRAM, up

EVERYTHING = os.environ.get("ISTHMUS_HYPOTHESIS") == "explore"
ODD = (*sorted(RUN_ON - {("lab",)}), ("credentials", "enrol"))
"""Commands of which every option is tried with odd values, since they go on for long before they use some."""


def cases() -> Iterator[Case]:
    harmful = [name for name in SURROUNDINGS if name not in HARMLESS]
    for number, command in enumerate(surroundings.commands()):
        if EVERYTHING:
            yield from (Case(words, name) for words in {command.path, command.filled} for name in SURROUNDINGS)
        else:
            yield Case(command.filled, " + ".join((*HARMLESS, harmful[number % len(harmful)])))


def odd_options() -> Iterator[Case]:
    for path in ODD:
        tried = list(surroundings.odd_options(path))
        step = 1 if EVERYTHING else len(surroundings.ODD_VALUES) + 1  # another value for each option
        yield from (Case(words, "no locale") for words in tried[::step])


@partial(inside, limit_s=7200 if EVERYTHING else LIMIT_S)
def test_no_surroundings_are_an_internal_error() -> None:
    home = Path("/run/home")
    home.mkdir()
    for folder in ("/etc", "/var", "/usr", "/opt"):  # some commands would write there
        sh(f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}")
    os.environ["HOME"] = str(home)
    with up(home / "up", "--http", "off", "--cidr", "10.200.0.0/16") as facts:
        os.environ["ISTHMUS_BUS"] = facts["bus"]
        sh(f"{PROGRAM} replay export {home}/a.isthmus")
        found = [
            f"isthmus {' '.join(case.arguments)!r} ({case.surrounding}) {problem}:\n{ended.said[-1500:]}"
            for case, ended in surroundings.sweep([*cases(), *odd_options()])
            if (problem := surroundings.wrong(case, ended))
        ]
    assert not found, "\n".join([f"{len(found)} of them", *found[:20]])
