"""Take flows off the fast path for a while, so that whoever looks at the tunnel device sees their packets.

The programs read until when from a record of its own, and it is never long: a capture that is killed leaves
nothing behind for more than seconds. An agent that starts brings other programs: so those that hang are looked
for each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Sequence

from events.errors import Refused, Usage
from nodeagent import system
from nodeagent.fastpath import layout, libbpf, programs

HOLD_S, RENEW_S = 2.0, 0.2
RECORD = ".data.held"


class Held:
    """The flows of ``pod`` (4 bytes; zeros: of all) take the stack for as long as :meth:`renew` is called."""

    def __init__(self, pod: bytes) -> None:
        self._pod = pod
        self._seen: set[int] = set()
        self._records: dict[int, int] = {}
        self.was_on = False
        """Whether any program of the fast path hung here."""

    def renew(self) -> None:
        """Hold them for :data:`HOLD_S` from now on, in each program's record. Raises Refused, OSError."""
        for number in {number for number, _, _ in programs.hanging()} - self._seen:
            if programs.is_ours(number):
                self.was_on = True
                with contextlib.suppress(FileNotFoundError):  # of those that learn only
                    self._records[number] = libbpf.map_of(number, RECORD)
            self._seen.add(number)
        for record in self._records.values():
            self._hold(record)

    def close(self) -> None:
        """Renew it no more: another capture may hold flows, too, so the record is left to run out."""
        for record in self._records.values():
            os.close(record)
        self._records = {}

    def _hold(self, record: int) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        there = libbpf.read(record, bytes(4), layout.HELD.size) or bytes(layout.HELD.size)
        until, pod = layout.HELD.unpack(there)
        others = until > now and pod != self._pod  # another capture's: both are held by holding all
        pod = bytes(4) if others else self._pod
        libbpf.put(record, {bytes(4): layout.HELD.pack(now + int(HOLD_S * 1e9), pod)})


@contextlib.asynccontextmanager
async def held(address: str = "") -> AsyncIterator[Held]:
    """Within it, and up to :data:`HOLD_S` longer, the flows of a pod (none: all) take the stack.

    Raises Refused, OSError. Cancelled, it leaves them to be fast again when that time is over.
    """
    found = Held(socket.inet_aton(address) if address else bytes(4))

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(OSError):  # programs that go just now
                await asyncio.to_thread(found.renew)

    task: asyncio.Task[None] | None = None
    try:
        await asyncio.to_thread(found.renew)
        task = asyncio.create_task(renew(), name="hold")
        yield found
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        found.close()


async def capture(device: str, address: str, seconds: float, expression: Sequence[str]) -> bool:
    """Show the packets of the tunnel device for that long by tcpdump; whether the fast path was on.

    Raises Refused(prerequisite_missing) without device or tcpdump, Usage when it does not take the expression,
    BrokenPipeError when nobody reads its output any more, and as :func:`held` does. Cancelled, it ends tcpdump,
    and flows are fast again within :data:`HOLD_S`.
    """
    if device not in {name for _, name in socket.if_nameindex()}:
        raise Refused(
            "prerequisite_missing",
            f"there is no device {device}: start the agent, or name the tunnel device with --device",
            device=device,
        )
    program = system.find("tcpdump")
    if program is None:
        raise Refused(
            "prerequisite_missing", "tcpdump is not installed: apt-get install tcpdump", program="tcpdump"
        )
    words = [*(["host", address] if address else []), *(["and"] if address and expression else []), *expression]
    async with held(address) as hold:
        process = await asyncio.create_subprocess_exec(program, "-l", "-nn", "-i", device, *words)
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
                if code and _reader_has_gone():
                    raise BrokenPipeError
                if code:
                    text = (
                        f"tcpdump has ended (code {code}): it says above what it did not take or could not do"
                    )
                    raise Usage("usage", text)
        except TimeoutError:
            process.terminate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
    return hold.was_on


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads from."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
