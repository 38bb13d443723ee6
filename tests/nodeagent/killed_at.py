"""The command line with a kill in it: the process gets SIGKILL before or after one call of one function.

``python -m tests.nodeagent.killed_at MODULE:FUNCTION:before|after[:N] ARGUMENT …`` runs ``isthmus ARGUMENT …``;
with the N-th call (the first one, if not said) it is gone, as by ``kill -9``. The program knows nothing of it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import sys
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Put the kill in place."""
    module, path, when, *rest = point.split(":")
    count = [int(rest[0]) if rest else 1]
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def reached() -> bool:
        count[0] -= 1
        return count[0] == 0

    if inspect.iscoroutinefunction(real):

        @functools.wraps(real)
        async def later(*args: Any, **named: Any) -> Any:
            now = reached()
            if now and when == "before":
                die()
            result = await real(*args, **named)
            if now:
                die()
            return result

        setattr(owner, name, later)
        return

    @functools.wraps(real)
    def at_once(*args: Any, **named: Any) -> Any:
        now = reached()
        if now and when == "before":
            die()
        result = real(*args, **named)
        if now:
            die()
        return result

    setattr(owner, name, at_once)


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.argv[:] = ["isthmus", *sys.argv[2:]]
    from controlplane.cli.main import main

    main()
