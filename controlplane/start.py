"""Where the programs begin: an interrupt ends them quietly from the first moment on.

Loading the command line takes a few tenths of a second, in which Python would answer a Ctrl-C with a traceback.
So this module, which loads nothing, takes the signal before that; once the commands are there, they get it as
KeyboardInterrupt, as everywhere. Who started the program with a signal ignored (``nohup``) keeps that.

SIGTERM, and SIGHUP of a terminal that is gone, end commands as a Ctrl-C does, so that no file is left half
written; then the program dies of that signal, as those see it who sent it.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""128 + SIGINT: what shells say of a program that a Ctrl-C has ended."""


def _end(_number: int, _frame: FrameType | None) -> None:
    """End at once, without a word: nothing has begun yet, or all is done."""
    os._exit(INTERRUPTED)


def _unwind(number: int, _frame: FrameType | None) -> None:
    """Leave what is under way by its ways out. Raises SystemExit."""
    _told.append(number)
    sys.exit(128 + number)


_told: list[int] = []
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def main() -> None:
    """Run the command line. Does not return: raises SystemExit with its exit code, or dies of a signal."""
    from controlplane.cli.main import main as run

    ours = signal.getsignal(signal.SIGINT) is _end
    others = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    try:
        for number in others:
            signal.signal(number, _unwind)
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # just before the command line takes it, or just after
        sys.exit(INTERRUPTED)
    finally:
        if ours:  # what ends has nothing to say about being interrupted, either
            signal.signal(signal.SIGINT, _end)
        for number in others:
            signal.signal(number, signal.SIG_DFL)
        if _told:
            os.kill(os.getpid(), _told[0])
