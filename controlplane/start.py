"""Where the programs begin: an interrupt ends them quietly from the first moment on.

Loading the command line takes a few tenths of a second, in which Python would answer a Ctrl-C with a traceback.
So this module, which loads nothing, takes the signal before that; once the commands are there, they get it as
KeyboardInterrupt, as everywhere. Who started the program with SIGINT ignored (``nohup``) keeps that.
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


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def main() -> None:
    """Run the command line. Does not return: raises SystemExit with its exit code."""
    from controlplane.cli.main import main as run

    ours = signal.getsignal(signal.SIGINT) is _end
    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # just before the command line takes it, or just after
        sys.exit(INTERRUPTED)
    finally:
        if ours:  # what ends has nothing to say about being interrupted, either
            signal.signal(signal.SIGINT, _end)
