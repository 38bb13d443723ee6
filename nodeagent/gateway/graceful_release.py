"""Addresses that the log has given to another gateway, and that stay here until it is there.

A planned handover must not lose new connections: whoever is to give an address up serves it on until the
new holder is heard. The address is not defended meanwhile, so the kernel is silent from the new holder's
first word on (:mod:`nodeagent.gateway.rules`), be that its announcement or the answer to our question.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from events.errors import Refused
from events.protocol.clb import Holder
from nodeagent.firewall import ruleset
from nodeagent.gateway import rules
from nodeagent.gateway.previous_holders import Candidate

log = logging.getLogger("isthmus.agent.gateway")

STAY_S = 3.0
"""How long at most: a new holder that is silent for longer is replaced by the controller."""

LOOK_S = 0.03
"""Between two looks whether the new holder was heard."""


class ServedAddress(NamedTuple):
    """An address that is served here: as whose, and the machine before, which has its older connections."""

    holder: Holder
    previous: Candidate | None


class _Releasing(NamedTuple):
    served: ServedAddress
    until: float


class GracefulRelease:
    """:meth:`follow` is to be called at every step, and again LOOK_S later while it returns something."""

    def __init__(self) -> None:
        self._releasing: dict[str, _Releasing] = {}

    async def follow(
        self,
        before: Mapping[str, ServedAddress],
        held: Collection[str],
        elsewhere: Collection[str],
        ask: Callable[[str], None],
    ) -> dict[str, ServedAddress]:
        """What is still to be served though it is not held.

        ``before`` was served until now, ``held`` is held by the log, ``elsewhere`` others hold; ``ask`` asks
        the link who has an address. An address that cannot be looked after any more does not stay. Cancelled,
        what stayed before stays.
        """
        now = time.monotonic()
        waiting = {
            a: self._releasing.get(a) or _Releasing(served, now + STAY_S) for a, served in before.items()
        }
        self._releasing = {
            a: g for a, g in waiting.items() if a in elsewhere and a not in held and now < g.until
        }
        if not self._releasing:
            return {}
        try:
            # Every time: a defence that was under way when the log moved on may have come after the first.
            await ruleset.nft(rules.render_undefended(list(self._releasing)))
            heard = await ruleset.elements_of("yielded", family="arp", table=rules.TABLE)
            for address in self._releasing.keys() - heard:
                ask(address)
        except (Refused, OSError) as error:
            log.warning("given up before the new holder is heard: %s", error)
            heard = set(self._releasing)
        self._releasing = {address: g for address, g in self._releasing.items() if address not in heard}
        return {address: g.served for address, g in self._releasing.items()}
