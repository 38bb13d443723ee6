"""Many seeds: ``python -m tests.simulation [--from N] [--seeds N] [--seconds S]``.

Stops at the first seed that breaks a promise, prints the smallest schedule that still does, exits 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.simulation.world import explain, live


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what goes wrong on purpose need not be told
    started = time.monotonic()
    events = done = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        outcome = live(seed)
        done += 1
        events += outcome.events
        if outcome.wrong:
            print(explain(seed))
            return 1
        if time.monotonic() - started > arguments.seconds:
            break
    took_s = time.monotonic() - started
    print(f"{done:,} seeds, {events:,} events, {done / took_s * 60:,.0f} seeds per minute: every promise kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
