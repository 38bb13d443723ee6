"""Take flows off the fast path for a while, so that whoever looks at the tunnel device sees their packets.

The programs read until when from their own record, and it is never long: a capture that is killed leaves
nothing behind for more than seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence

from events.errors import Refused, Usage
from nodeagent import system
from nodeagent.fastpath import layout, libbpf
from nodeagent.fastpath.programs import INGRESS, PREFIX

HOLD_S, RENEW_S = 3.0, 1.0


def _record_of(device: str) -> int:
    """A descriptor of the programs' record, or -1 where none hang. Raises Refused, OSError."""
    try:
        ifindex = socket.if_nametoindex(device)
    except OSError as error:
        raise Refused(
            "prerequisite_missing",
            f"there is no device {device}: start the agent, or name the tunnel device with --device",
            device=device,
        ) from error
    try:
        for number in libbpf.attached(ifindex, INGRESS):
            if libbpf.name_of(number).startswith(PREFIX):
                return libbpf.map_of(number, ".bss")
    except PermissionError as error:
        raise Refused(
            "not_permitted",
            "capturing opens the running agent's eBPF maps: run it as root",
            capability="CAP_BPF",
        ) from error
    return -1


@contextlib.asynccontextmanager
async def held(device: str, address: str = "") -> AsyncIterator[bool]:
    """Within it the flows of a pod (none: all) take the stack; False where the fast path is off anyway.

    Raises Refused, OSError. When it is left, also by cancellation, they may be fast again at once.
    """
    record = await asyncio.to_thread(_record_of, device)
    if record < 0:
        yield False
        return
    pod = socket.inet_aton(address) if address else bytes(4)

    def hold(seconds: float) -> None:
        there = libbpf.read(record, bytes(4), layout.NODE.size) or bytes(layout.NODE.size)
        until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(seconds * 1e9) if seconds else 0
        start, part = layout.HELD_UNTIL_OFFSET, layout.pack_held(until, pod)
        libbpf.put(record, {bytes(4): there[:start] + part + there[start + len(part) :]})

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            hold(HOLD_S)

    hold(HOLD_S)
    task = asyncio.create_task(renew(), name="hold")
    try:
        yield True
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        hold(0)
        os.close(record)


async def capture(device: str, address: str, seconds: float, expression: Sequence[str]) -> bool:
    """Show the packets of the tunnel device for that long by tcpdump; whether the fast path was on.

    Raises Refused(prerequisite_missing) without tcpdump, Usage when it does not take the expression, and as
    :func:`held` does. Cancelled, it ends tcpdump and leaves the flows free to be fast again.
    """
    program = system.find("tcpdump")
    if program is None:
        raise Refused(
            "prerequisite_missing", "tcpdump is not installed: apt-get install tcpdump", program="tcpdump"
        )
    words = [*(["host", address] if address else []), *(["and"] if address and expression else []), *expression]
    async with held(device, address) as was_on:
        process = await asyncio.create_subprocess_exec(program, "-l", "-nn", "-i", device, *words)
        try:
            async with asyncio.timeout(seconds):
                if await process.wait():
                    raise Usage("usage", "tcpdump has ended at once: it says above what it did not take")
        except TimeoutError:
            process.terminate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
    return was_on
