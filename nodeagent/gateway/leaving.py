"""Addresses that the log has given to another gateway, and that stay here until it is there.

A planned handover must not lose new connections: whoever is to give an address up serves it on until the
new holder's announcement is heard, which is when neighbours learn of it, too. The address is not defended
meanwhile, so the kernel is silent from that announcement on (:mod:`nodeagent.gateway.rules`).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from events.clb import Holder
from nodeagent import firewall
from nodeagent.gateway import rules
from nodeagent.gateway.former import Candidate

STAY_S = 3.0
"""How long at most: a new holder that is silent for longer is replaced by the controller."""

LOOK_S = 0.03
"""Between two looks whether the new holder was heard."""


class Served(NamedTuple):
    """An address that is served here: as whose, and the machine before, which has its older connections."""

    holder: Holder
    former: Candidate | None


class _Going(NamedTuple):
    served: Served
    until: float


class Leaving:
    """:meth:`follow` is to be called at every step, and again LOOK_S later while it returns something."""

    def __init__(self) -> None:
        self._going: dict[str, _Going] = {}

    async def follow(
        self, before: Mapping[str, Served], held: Collection[str], elsewhere: Collection[str]
    ) -> dict[str, Served]:
        """What is still to be served though it is not held. Raises as :func:`nodeagent.firewall.nft`.

        ``before`` was served until now, ``held`` is held by the log, ``elsewhere`` others hold.
        """
        now = time.monotonic()
        fresh = [a for a in before if a not in self._going and a not in held and a in elsewhere]
        for address in fresh:
            self._going[address] = _Going(before[address], now + STAY_S)
        if fresh:
            await firewall.nft(rules.render_undefended(fresh))
        heard = await firewall.elements_of("yielded", family="arp", table=rules.TABLE) if self._going else set()
        self._going = {
            address: going
            for address, going in self._going.items()
            if address in before
            and address not in held
            and address in elsewhere
            and address not in heard
            and now < going.until
        }
        return {address: going.served for address, going in self._going.items()}
