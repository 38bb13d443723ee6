"""Who forwards between this node and peers behind other NATs; the same at both ends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf

from events.protocol.ways import preferred_relay
from nodeagent.membership.peers import Peer
from nodeagent.nat.packets import Message
from nodeagent.nat.pair import MISSED, WAIT_S, Pair
from nodeagent.nat.returning import returning
from nodeagent.nat.unheard import Missing

ASKED_PER_S = 2.0
"""Questions a second: with answers and confirmed keepalives of 1,000 peers, under 20 kbit/s."""
PERIOD_S = 2.0
"""Between two questions to a peer behind a NAT, or from behind one; longer where the rate does not allow it."""
HEARD_S = 30.0
"""Of gateways none of which answers, those go on being used that fell silent within this time of the last."""


class Relaying:
    """``relays`` are the gateways. It reads the pairs of the book that it belongs to, and changes none."""

    def __init__(self, pairs: Mapping[int, Pair]) -> None:
        self._pairs = pairs
        self.relays: tuple[Peer, ...] = ()
        self.missing = Missing()
        self._free: frozenset[int] = frozenset()  # epochs of silent peers that are not behind NAT
        self._returning: dict[int, float] = {}  # epochs of gateways that are not to relay yet → until when
        self.behind_nat: Callable[[Peer], bool | None] = lambda _: None
        self._carries: Callable[[Peer, Peer], bool] = lambda _relay, _peer: True

    @property
    def period_s(self) -> float:
        """Between two questions to a gateway: many depend on it, and both ends should miss it at one time."""
        return max(PERIOD_S, len(self.relays) / (ASKED_PER_S / 2))

    @property
    def gap_s(self) -> float:
        """When nobody behind NAT has asked a gateway for longer, all of them have noticed that it was away."""
        return self.period_s + (MISSED + 1) * WAIT_S

    def until_return_s(self, now: float) -> float:
        """Until the next gateway that is back relays again; seconds, infinite where none is."""
        return max(0.0, min(self._returning.values(), default=inf) - now)

    def follow(
        self,
        relays: tuple[Peer, ...],
        behind_nat: Callable[[Peer], bool | None],
        carries: Callable[[Peer, Peer], bool],
    ) -> bool:
        """Who forwards, and for whom; where that changes, silent peers are looked at again: whether it did."""
        silent = (pair for pair in self._pairs.values() if pair.missed >= MISSED)
        free = frozenset(pair.peer.epoch for pair in silent if behind_nat(pair.peer) is False)
        changed = (relays, free) != (self.relays, self._free)
        self.relays, self._free, self.behind_nat, self._carries = relays, free, behind_nat, carries
        return changed

    def look(self, now: float) -> bool:
        """See which gateways are not to be used yet; whether these are others than before. O(gateways)."""
        answering = [
            (relay.epoch, self._pairs[relay.epoch].back) for relay in self.relays if self.answers(relay)
        ]
        found = returning(answering, now)
        changed = found.keys() != self._returning.keys()
        self._returning = found
        return self.missing.look(now) or changed

    def told(self, peer: Peer, answer: Message, now: float) -> None:
        """A gateway's answer says which peers behind NAT it does not hear. O(pairs) where it names any."""
        if peer in self.relays:
            hidden = (epoch for epoch, pair in self._pairs.items() if self.behind_nat(pair.peer))
            self.missing.told(peer.epoch, answer.number, answer.challenge, hidden, now, more=answer.more)

    def silent(self, peer: Peer) -> None:
        """The peer does not answer any more: what follows rests on whether it is behind NAT."""
        if self.behind_nat(peer) is False:
            self._free |= {peer.epoch}

    def answers(self, peer: Peer) -> bool:
        """Whether the peer answered lately."""
        pair = self._pairs.get(peer.epoch)
        return pair is not None and pair.seen_as is not None and pair.missed < MISSED

    def of(self, own: Peer, pair: Pair, *, behind: bool, translated: bool) -> Peer | None:
        """Who forwards to a peer that does not answer, while this node is ``behind`` NAT.

        Also to one that does through NAT (``translated``), once it encrypts and the log has it behind NAT, too:
        of WireGuard's port nobody knows what a router makes of it, so the two have no session.
        """
        peer, waiting = pair.peer, pair.missed < MISSED
        no_session = translated and peer.encrypts and self.behind_nat(peer) is True
        if pair.seen is not None and not no_session:
            return None
        if pair.relay and waiting and pair.seen_as is None:
            return next((relay for relay in self.relays if relay.epoch == pair.relay), None)
        if not behind or self.behind_nat(peer) is False or (waiting and not no_session):
            return None
        others = [relay for relay in self.relays if relay != peer]
        able = [relay for relay in others if self._carries(relay, peer)] or ([] if peer.sealed else others)
        answering = {relay.epoch: relay for relay in able if self.answers(relay)}
        hearing = self.missing.hearing(answering, peer.epoch)
        answering = {epoch: relay for epoch, relay in answering.items() if epoch in hearing}
        ready = {epoch: relay for epoch, relay in answering.items() if epoch not in self._returning}
        usable = ready or answering or self._heard_last(able)
        chosen = preferred_relay(own.epoch, peer.epoch, usable)
        return usable[chosen] if chosen is not None else None

    def _heard_last(self, relays: Iterable[Peer]) -> dict[int, Peer]:
        """Those that answered until a while ago, where none does now: kernels forward without agents."""
        told = {
            relay: pair.told_at for relay in relays if (pair := self._pairs.get(relay.epoch)) and pair.seen_as
        }
        last = max(told.values(), default=0.0)
        return {relay.epoch: relay for relay, at in told.items() if at > last - HEARD_S}
