"""What checks wait for, and what their firewalls have counted."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from deploy.lab.failures import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploy.lab.machines.machine import Machine

POLL_S = 0.2


async def until(limit_s: float, differing: Callable[[], str]) -> float:
    """Seconds until nothing differs any more. Raises CheckFailedError with what still does.

    Cancelled, only the waiting ends.
    """
    started = time.monotonic()
    while said := differing():
        if time.monotonic() - started > limit_s:
            raise CheckFailedError(f"not within {limit_s:g} s: {said}")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - started


async def counted(machine: Machine, table: str, words: Sequence[str]) -> dict[str, int]:
    """Packets that the rules of the table with each of these comments have counted on the machine.

    Cancelled, it leaves nothing behind.
    """
    found = dict.fromkeys(words, 0)
    for line in (await machine.run("nft", "list", "table", *table.split())).splitlines():
        for word in words:
            if f'comment "{word}"' in line:
                found[word] += int(line.partition("packets ")[2].split()[0])
    return found
