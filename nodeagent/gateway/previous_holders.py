"""Carries on what began at the previous holder of an address, as long as that machine lives.

And what arrives here for an address that another gateway holds by now goes on to that one.

The rules are in :mod:`nodeagent.gateway.rules`; here is only who it is and whether it still answers ARP.
Without an answer its connections are lost, and their packets take the usual way: a backend that does not
know them resets them, so that clients connect anew at once instead of waiting for a dead machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from events.errors import IsthmusError
from nodeagent.conditions import Conditions
from nodeagent.firewall import ruleset
from nodeagent.gateway import rules
from nodeagent.gateway.link import ArpSocket
from nodeagent.gateway.rules import PreviousHolder

log = logging.getLogger("isthmus.agent.gateway")

PATIENCE_S = 0.3
"""How long an answer may take. A taking of addresses waits so long for a machine that is dead."""

ASK_EVERY_S = 0.9

BREAKS = (
    "connections in progress break when the holder changes, since they cannot be sent on to the previous one "
    "(it takes nftables' dup, kernel module nft_dup_ipv4)"
)

MISSES = 3
"""Questions in a row without an answer: it is gone, and its connections with it."""


class Candidate(NamedTuple):
    """A held address with the epoch of its holding, and the underlay address of the machine before."""

    address: str
    epoch: int
    underlay: str


class PreviousHolders:
    """Keeps the rules that send packets on to previous holders. :meth:`look` is to be called every second."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._misses: dict[Candidate, int] = {}
        self._asked_at: dict[Candidate, float] = {}
        self._known: dict[Candidate, str] = {}  # → the MAC by its last answer
        self._answers: dict[str, tuple[float, str]] = {}  # underlay address → when it was asked, the MAC
        self._applied: str | None = None
        self._able = True
        self._arp: tuple[str, ArpSocket] | None = None

    async def look(self, candidates: Iterable[Candidate], elsewhere: Sequence[str], device: str) -> None:
        """Ask each machine whether it lives, and write the rules accordingly.

        ``elsewhere`` are the addresses that other gateways hold.

        What fails here costs connections that began elsewhere and never the holding of the address: it becomes
        a condition. Cancelled, the rules are as they were or as they are to be.
        """
        if not self._able:
            return
        wanted = list(candidates)
        for gone in set(self._misses) - set(wanted):
            del self._misses[gone], self._asked_at[gone]
            self._known.pop(gone, None)
        self._answers = {u: a for u, a in self._answers.items() if any(c.underlay == u for c in wanted)}
        try:
            for candidate in wanted:
                await self._ask(candidate, device)
            await self._write(
                [PreviousHolder(c.address, c.underlay, self._known[c]) for c in wanted if c in self._known],
                elsewhere,
                device,
            )
            self._conditions.clear("gateway previous holder")
        except (OSError, IsthmusError) as error:
            self._able = getattr(error, "code", "") != "firewall_refused"
            self._known.clear()
            self._conditions.set(
                "gateway previous holder", f"{BREAKS}: {getattr(error, 'message', '') or error}"
            )

    async def _ask(self, candidate: Candidate, device: str) -> None:
        due = time.monotonic() - self._asked_at.get(candidate, float("-inf")) >= ASK_EVERY_S
        if self._misses.setdefault(candidate, 0) >= MISSES or not due:
            return
        self._asked_at[candidate] = time.monotonic()
        mac = await self._answer(candidate.underlay, device)
        if mac:
            self._misses[candidate] = 0
            self._known[candidate] = mac
            return
        self._misses[candidate] += 1
        if self._misses[candidate] >= MISSES and candidate in self._known:
            del self._known[candidate]
            log.info("the previous holder %s of %s is gone", candidate.underlay, candidate.address)

    async def _answer(self, underlay: str, device: str) -> str:
        """The machine's MAC, or empty. One that held several addresses is asked once for all of them."""
        asked_at, mac = self._answers.get(underlay, (float("-inf"), ""))
        if time.monotonic() - asked_at > ASK_EVERY_S / 2:
            socket = self._socket(device)
            mac = await asyncio.to_thread(socket.taken, underlay, patience_s=PATIENCE_S)
            self._answers[underlay] = time.monotonic(), mac
        return mac

    async def _write(self, previous: Sequence[PreviousHolder], elsewhere: Sequence[str], device: str) -> None:
        script = rules.render_previous(previous, elsewhere, device)
        if script == self._applied:
            return
        await ruleset.nft(script)
        self._applied = script

    def _socket(self, device: str) -> ArpSocket:
        """One of its own: questions and announcements must not read each other's answers."""
        if self._arp is None or self._arp[0] != device:
            self.close()
            self._arp = device, ArpSocket(device)
        return self._arp[1]

    def close(self) -> None:
        """Release the socket; the rules stay."""
        if self._arp is not None:
            self._arp[1].close()
            self._arp = None
