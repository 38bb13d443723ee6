"""What a gateway says and asks about held addresses on its underlay's link (ARP)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from nodeagent.dataplane.underlay import Underlay
from nodeagent.gateway.link import ArpSocket

BEAT_S = 1.0
"""Between two announcements, confirmations of the bus, and a gateway's heartbeats."""

BURST = (0.0, 0.1, 0.3)
"""Seconds after taking an address at which it is announced besides."""


class ArpAnnouncer:
    """One socket on the link that the underlay has now. All raise OSError (EPERM without CAP_NET_RAW)."""

    def __init__(self, link: Callable[[], Underlay | None]) -> None:
        self._link = link
        self._arp: tuple[str, ArpSocket] | None = None
        self._acquired_at: dict[str, float] = {}  # address → when it was taken

    def on_acquired(self, address: str) -> None:
        """Announce an address that was just taken, and soon again."""
        self.announce([address])
        self._acquired_at[address] = time.monotonic()

    def on_released(self, address: str) -> None:
        """It is not ours any more."""
        self._acquired_at.pop(address, None)

    def announce(self, addresses: Iterable[str]) -> None:
        """Say on the link that these are here."""
        socket = self._socket()
        for address in addresses if socket else ():
            if socket:
                socket.announce(address)

    def ask(self, address: str) -> None:
        """Ask on the link who has the address; the kernel hears the answer."""
        socket = self._socket()
        if socket:
            socket.ask(address)

    async def taken(self, address: str) -> str:
        """The MAC of another machine that answers for the address, or empty.

        Cancelled, the question ends in its thread.
        """
        socket = self._socket()
        return await asyncio.to_thread(socket.taken, address) if socket else ""

    def pause_s(self) -> float:
        """Seconds to the next announcement that is due."""
        now = time.monotonic()
        due = [moment + after - now for moment in self._acquired_at.values() for after in BURST]
        return max(0.02, min([BEAT_S, *(wait for wait in due if wait > 0)]))

    def close(self) -> None:
        """Release the socket; the next word opens another one."""
        if self._arp is not None:
            self._arp[1].close()
            self._arp = None

    def _socket(self) -> ArpSocket | None:
        underlay = self._link()
        if underlay is None or not underlay.present:
            return None
        if self._arp is None or self._arp[0] != underlay.device:
            self.close()
            self._arp = underlay.device, ArpSocket(underlay.device)
        return self._arp[1]
