"""Who is seen where, and what follows from it. Pure: times are arguments (monotonic seconds).

For each pair of nodes there are two questions, and each node has both: how the peer sees this node (it asks,
the peer answers), and how this node sees the peer (the other way round). The pair is joined through a NAT when
either answer is another address or port than the one that is announced. Who is behind a NAT asks all its peers
again and again, who is not asks a few witnesses.

A peer's place moves only by a CONFIRM that carries the challenge which was sent to that very place. An old
HELLO is not answered: its number is not larger than the last one's. Nothing is held for anybody but members,
and one place and one challenge for each of these.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable, Iterable, Mapping
from math import inf

from nodeagent.membership.peers import Peer
from nodeagent.nat.packets import (
    ANSWER,
    CHALLENGE_BYTES,
    CONFIRM,
    DONE,
    HELLO,
    LASTS_MAX_MS,
    Endpoint,
    Message,
)
from nodeagent.nat.pair import MISSED, REST_MAX_S, REST_S, WAIT_S, Pair, Seen, Way
from nodeagent.nat.relaying import ASKED_PER_S, PERIOD_S, Relaying
from nodeagent.nat.returning import Asked
from nodeagent.nat.unheard import Unheard
from nodeagent.netlink.rows import address_bytes, split_cidr

ALARM_PER_S = 400.0
STEP_S, ALARMED_S = 0.25, 0.05
PLAIN_S, WITNESS_S = 60.0, 15.0
"""Between two questions to a peer that sees this node as it announces itself; to a witness, when nobody is
behind NAT."""
OFFERED_S = 5.0
"""How long a challenge may be answered."""
KEEP_S = (24.0, 28.0)
"""Between two packets that keep a mapping: routers forget an unreplied flow after 30 s."""
ALARM_GAP_S = 1.0
"""After all were asked at once: what the last answers say is of the same change."""
ALARM_QUESTIONS, ALARM_TIMES, ALARM_EARNED_S = 2000, 2, 160.0
"""How many questions may be asked so in a row, or how often all where these are more, and in what time that
many are earned again. A router that changes without end costs no more, and in a small cluster each change is
followed.
"""
FRESH_S = 300.0
"""How long what somebody said counts for the report."""
NAMED = 8
"""Most names in what is said of this node."""


class NatBook:
    """The pairs of one node. ``version`` grows with everything that changes a way or what is reported."""

    def __init__(self, *, number: int = 1, entropy: Callable[[int], bytes] = os.urandom, seed: int = 0) -> None:
        self._pairs: dict[int, Pair] = {}  # epoch → pair
        self._own: Peer | None = None
        self._port = 0
        self.number = number
        """The last number that was used."""
        self._entropy = entropy
        self._random = random.Random(seed or None)  # noqa: S311  only spreads packets over time
        self._floors: dict[int, int] = {}  # of an earlier life, epoch → last number
        self.relaying = Relaying(self._pairs)
        self.asked = Asked()
        """By those behind NAT."""
        self._unheard = Unheard()
        self._free: frozenset[int] = frozenset()  # epochs of silent peers that are not behind NAT
        self._due: list[tuple[float, int, int]] = []  # when, tie-breaker, epoch
        self._keep: list[tuple[float, int, int]] = []
        self._tie = 0
        self._outside: dict[int, Endpoint] = {}  # epoch → as whom that peer sees this node, not as announced
        self._budget, self._looked = ASKED_PER_S, -1.0
        self._alarm_until = -1.0
        self._alarm_after = self._turn = -1.0
        self._allowed, self._allowed_at = inf, 0.0  # questions of alarms
        self.alarms = 0
        """How often everybody was asked at once."""
        self.version = 0
        self.counted: dict[str, int] = {"asked": 0, "kept": 0, "moved": 0, "refused": 0}

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def behind(self) -> bool:
        """Whether somebody sees this node elsewhere than it announces."""
        return bool(self._outside)

    @property
    def alarmed(self) -> bool:
        """Whether everybody is being asked now."""
        return self._looked < self._alarm_until

    def pause_s(self, now: float) -> float:
        """Seconds until it is time to look again."""
        return min(ALARMED_S if self.alarmed else STEP_S, self.relaying.until_return_s(now))

    # --- who is there ----------------------------------------------------------------------------------------

    def be(self, own: Peer, port: int, now: float) -> None:
        """This node, as the log has it, and the cluster's VXLAN port."""
        if (own, port) == (self._own, self._port):
            return
        moved = self._own is not None and (own.epoch, own.underlay) != (self._own.epoch, self._own.underlay)
        if moved:
            for pair in self._pairs.values():
                pair.adopted = self._mine(pair)  # its row stays until it says how it sees the new address
                pair.seen_as = pair.told = None
            self._outside.clear()
            self.alarm(now)
        self._own, self._port = own, port
        self.version += 1

    def follow(
        self,
        peers: Mapping[int, Peer],
        asked: Iterable[Peer],
        now: float,
        *,
        relays: Iterable[Peer] = (),
        behind_nat: Callable[[Peer], bool | None] = lambda _: None,
        carries: Callable[[Peer, Peer], bool] = lambda _relay, _peer: True,
    ) -> None:
        """The members by epoch, those to ask of them, and who forwards between two that are behind NAT.
        O(these).

        ``behind_nat``: whether a member is, as the log has it (None: it does not say). ``carries``: whether a
        relay forwards to that peer as this node sends.
        """
        self.version += self.relaying.follow(tuple(relays), behind_nat, carries)
        self._unheard.follow((epoch for epoch, peer in peers.items() if behind_nat(peer)), now)
        for epoch in [epoch for epoch, pair in self._pairs.items() if peers.get(epoch) != pair.peer]:
            peer, pair = peers.get(epoch), self._pairs[epoch]
            self.version += 1
            if peer is None:
                del self._pairs[epoch]
                self._outside.pop(epoch, None)
                continue
            if peer.underlay != pair.peer.underlay:
                pair.seen = pair.offered = None  # it says anew where it is, and its own probes prove it
                pair.waiting, pair.missed = False, 0
            pair.peer, pair.rest_s = peer, REST_S  # of another key or stage its way stays meanwhile
            self._plan(pair, now)
        wanted = {peer.epoch: peer for peer in asked}
        for epoch, pair in self._pairs.items():
            pair.asking = epoch in wanted or self._mine(pair)
        for epoch, peer in wanted.items():
            if epoch not in self._pairs:
                self._pair(peer).asking = True
                self._plan(self._pairs[epoch], now)
        for pair in self._pairs.values():
            if pair.asking and pair.due == 0.0:
                self._plan(pair, now)

    def adopt(self, peer: Peer, place: Endpoint | None, relay: int = 0) -> None:
        """An earlier life reached the peer at that place of the second device, or by a relay (its epoch)."""
        pair = self._pair(peer)
        if place is not None and place != self._announced(peer):
            pair.seen = place
        else:
            pair.adopted, pair.relay = True, relay
        self.version += 1

    def floors(self) -> dict[int, int]:
        """The last number of each peer that asked, by epoch: what is not larger is not answered."""
        return {**self._floors, **{epoch: pair.floor for epoch, pair in self._pairs.items() if pair.floor}}

    def remember(self, floors: Mapping[int, int]) -> None:
        """What :meth:`floors` of an earlier life said."""
        self._floors = dict(floors)

    def _pair(self, peer: Peer) -> Pair:
        pair = self._pairs.get(peer.epoch)
        if pair is None:
            pair = self._pairs[peer.epoch] = Pair(peer, floor=self._floors.pop(peer.epoch, 0))
        return pair

    def _announced(self, peer: Peer) -> Endpoint:
        return Endpoint(address_bytes(peer.underlay), self._port)

    # --- what follows ----------------------------------------------------------------------------------------

    def _mine(self, pair: Pair) -> bool:
        """Whether the peer sees this node elsewhere than it announces, or did in an earlier life."""
        own = self._own
        return pair.adopted or (
            own is not None and pair.seen_as is not None and pair.seen_as != self._announced(own)
        )

    def _translated(self, pair: Pair) -> bool:
        return self._mine(pair) or (pair.seen is not None and pair.seen != self._announced(pair.peer))

    def ways(self) -> dict[Peer, Way]:
        """Everybody whose packets do not take the tunnel's own device, or are relayed. O(pairs)."""
        found: dict[Peer, Way] = {}
        for pair in self._pairs.values():
            translated, relay = self._translated(pair), None
            if self._own is not None:
                relay = self.relaying.of(self._own, pair, behind=self.behind, translated=translated)
            if relay is not None:
                found[pair.peer] = Way(None, relay)
            elif translated and not pair.relay:
                found[pair.peer] = Way(pair.seen or self._announced(pair.peer), None, pair.seen_as)
        return found

    def seen(self, now: float) -> Seen:
        """What others see of this node. O(pairs)."""
        own = self._own
        if own is None:
            return Seen()
        fresh = [pair for pair in self._pairs.values() if pair.seen_as and now - pair.told_at < FRESH_S]
        places = [pair.seen_as for pair in fresh if pair.seen_as and pair.seen_as != self._announced(own)]
        if not places:
            free = sorted(pair.peer.node for pair in fresh if self.relaying.behind_nat(pair.peer) is not True)
            return Seen(False, "", tuple(free[:NAMED])) if free else Seen()
        addresses = [str(place).partition(":")[0] for place in places]
        seen_as = max(set(addresses), key=lambda text: (addresses.count(text), text))
        names = sorted(pair.peer.node for pair in fresh if str(pair.seen_as).partition(":")[0] == seen_as)
        return Seen(True, seen_as, tuple(names[:NAMED]))

    # --- asking ----------------------------------------------------------------------------------------------

    def alarm(self, now: float) -> None:
        """A mapping changed or is gone: that of one is seldom the only one. All are asked, soon."""
        if now < self._alarm_after:
            return
        most = max(ALARM_QUESTIONS, ALARM_TIMES * len(self._pairs))
        self._allowed = min(most, self._allowed + (now - self._allowed_at) * most / ALARM_EARNED_S)
        self._allowed_at = now
        if self._allowed < 1:
            return
        self.alarms += 1
        asked = [pair for pair in self._pairs.values() if pair.asking and not pair.waiting]
        self._allowed -= len(asked)
        self._alarm_until, self._turn = now + 1.0 + len(asked) / ALARM_PER_S, now
        self._alarm_after = self._alarm_until + ALARM_GAP_S
        for pair in asked:
            self._plan(pair, now)

    def _plan(self, pair: Pair, due: float) -> None:
        pair.due = due
        self._tie += 1
        heapq.heappush(self._due, (due, self._tie, pair.peer.epoch))

    def _period_s(self, pair: Pair) -> float:
        relays = self.relaying.relays
        if pair.peer in relays and self.behind:
            return self.relaying.period_s  # one that sees no NAT between them, too: it says whom it hears
        if not self._translated(pair):
            return PLAIN_S if self.behind else WITNESS_S
        asked_per_s = min(ASKED_PER_S / 2, len(relays) / PERIOD_S)
        return max(PERIOD_S, len(self._pairs) / (ASKED_PER_S - asked_per_s))

    def _until_next_s(self, pair: Pair, now: float) -> float:
        """Until a peer that answered is asked again. Those asked at once take turns from now on: nobody would
        be asked for a whole period, and the next change not be seen.
        """
        period_s = self._period_s(pair)
        if now >= self._alarm_until or pair.peer in self.relaying.relays or not self._translated(pair):
            return period_s
        self._turn += period_s / len(self._pairs)
        return min(period_s, max(0.0, self._turn - now))

    def look(self, now: float) -> list[Peer]:
        """Whom to ask now. Call it several times a second; it costs what it returns."""
        passed_s = min(1.0, max(0.0, now - self._looked)) if self._looked >= 0 else 1.0
        self._looked = now
        self.version += self.relaying.look(now)
        rate = ALARM_PER_S if now < self._alarm_until else ASKED_PER_S
        self._budget = min(rate, self._budget + passed_s * rate)
        chosen: list[Peer] = []
        while self._due and self._due[0][0] <= now:
            due, _, epoch = self._due[0]
            pair = self._pairs.get(epoch)
            if pair is None or pair.due != due or not pair.asking:
                heapq.heappop(self._due)
                if pair is not None and pair.due == due:
                    pair.due = 0.0
                continue
            if pair.waiting:
                heapq.heappop(self._due)
                pair.waiting = False
                self._miss(pair, now)
                continue
            if self._budget < 1:
                break
            heapq.heappop(self._due)
            self._budget -= 1
            chosen.append(pair.peer)
        return chosen

    def _miss(self, pair: Pair, now: float) -> None:
        pair.missed += 1
        if pair.missed < MISSED:
            self._plan(pair, now)
            return
        if pair.missed == MISSED:
            pair.rest_s = REST_S
            self.version += 1
            self.relaying.silent(pair.peer)
            if self._translated(pair):
                self.alarm(now)
        elif pair.peer not in self.relaying.relays:
            pair.rest_s = min(REST_MAX_S, 2 * pair.rest_s)
        self._plan(pair, now + pair.rest_s)

    def hello(self, peer: Peer, now: float) -> tuple[Message, Endpoint] | None:
        """The question to a peer and where it goes; it counts as asked."""
        pair, own = self._pairs.get(peer.epoch), self._own
        if pair is None or own is None:
            return None
        self.number += 1
        self.counted["asked"] += 1
        pair.asked, pair.asked_at, pair.waiting, pair.told = self.number, now, True, None
        self._plan(pair, now + WAIT_S)
        return self._say(HELLO, peer, self.number), self.place_of(peer)

    def place_of(self, peer: Peer) -> Endpoint:
        """Where the peer is: where it was seen, or where it says."""
        pair = self._pairs.get(peer.epoch)
        return pair.seen if pair is not None and pair.seen is not None else self._announced(peer)

    def _say(self, kind: int, peer: Peer, number: int) -> Message:
        own = self._own
        if own is None:
            raise ValueError("this node has no range yet")
        network, length = split_cidr(own.cidr)
        return Message(kind, own.epoch, peer.epoch, network, length, number)

    def keeps(self, now: float) -> list[Endpoint]:
        """Where a packet has to go now so that routers do not forget this node."""
        found: list[Endpoint] = []
        while self._keep and self._keep[0][0] <= now:
            _, _, epoch = heapq.heappop(self._keep)
            pair = self._pairs.get(epoch)
            if pair is None or epoch not in self._outside:
                continue
            found.append(self.place_of(pair.peer))
            self._keep_on(epoch, now)
        self.counted["kept"] += len(found)
        return found

    def _keep_on(self, epoch: int, now: float) -> None:
        self._tie += 1
        heapq.heappush(self._keep, (now + self._random.uniform(*KEEP_S), self._tie, epoch))

    # --- what comes in ---------------------------------------------------------------------------------------

    def received(self, message: Message, peer: Peer, source: Endpoint, now: float) -> Message | None:
        """A message that the peer has sealed came from there; what to answer, to the same place.

        What is not fresh, or not what was waited for, changes nothing and is not answered.
        """
        own = self._own
        if own is None or (message.sender, message.receiver) != (peer.epoch, own.epoch):
            return None
        if message.kind == HELLO:
            return self._asked(message, self._pair(peer), source, now)
        pair = self._pairs.get(peer.epoch)
        if pair is None:
            return None
        if message.kind == CONFIRM:
            return self._confirmed(message, pair, source, now)
        fits = message.number == pair.asked and source == self.place_of(peer)
        if not fits:
            self.counted["refused"] += 1
            return None
        if message.kind == ANSWER and pair.waiting:
            return self._told(message, pair, now)
        if message.kind == DONE and pair.told is not None:
            self._settled(pair, pair.told, now)
        return None

    def _asked(self, message: Message, pair: Pair, source: Endpoint, now: float) -> Message | None:
        if message.number <= pair.floor:
            self.counted["refused"] += 1
            return None
        pair.floor = message.number
        if self.relaying.behind_nat(pair.peer):
            self.asked.again(now, self.relaying.gap_s)
            self._unheard.heard(pair.peer.epoch, now)
        lasts_ms = int(min(self.asked.lasts_s(now) * 1000, LASTS_MAX_MS))
        answer = self._say(ANSWER, pair.peer, message.number)._replace(seen=source, lasts_ms=lasts_ms)
        if pair.seen == source:
            pair.offered = None
            unheard, more = self._unheard.say(message.number, self.relaying.gap_s, now)
            return answer._replace(known=True, challenge=unheard, more=more)
        pair.offered, pair.offered_at, pair.number = source, now, message.number
        pair.challenge = self._entropy(CHALLENGE_BYTES)
        return answer._replace(challenge=pair.challenge)

    def _confirmed(self, message: Message, pair: Pair, source: Endpoint, now: float) -> Message | None:
        done = self._say(DONE, pair.peer, message.number)
        fresh = message.number == pair.number and message.challenge == pair.challenge and bool(pair.challenge)
        if not fresh or now - pair.offered_at > OFFERED_S or source not in {pair.offered, pair.seen}:
            self.counted["refused"] += 1
            return None
        if pair.offered == source and pair.seen != source:
            pair.seen, pair.offered = source, None
            pair.adopted, pair.relay = False, 0
            pair.missed = 0
            self.version += 1
            self.counted["moved"] += 1
        return done

    def _told(self, message: Message, pair: Pair, now: float) -> Message | None:
        if pair.missed >= MISSED:
            self.version += 1  # whom it relays to is reached again, also if it says what it said before
        pair.waiting, pair.missed, pair.rest_s = False, 0, REST_S
        pair.back.told(message.lasts_ms / 1000, pair.asked_at, now)
        if message.known:
            self.relaying.told(pair.peer, message, now)
        self.version += self.relaying.look(now)  # before anybody asks who relays
        if message.known:
            self._settled(pair, message.seen, now)
            return None
        pair.told = message.seen
        self._plan(pair, now + WAIT_S)  # if no DONE comes, from the beginning
        return self._say(CONFIRM, pair.peer, message.number)._replace(challenge=message.challenge)

    def _settled(self, pair: Pair, seen_as: Endpoint, now: float) -> None:
        own, before = self._own, pair.seen_as
        if own is None:
            return
        epoch = pair.peer.epoch
        pair.seen_as, pair.told, pair.told_at, pair.missed = seen_as, None, now, 0
        self.version += self.relaying.look(now)
        if pair.adopted or pair.relay or seen_as != before:
            pair.adopted, pair.relay = False, 0
            self.version += 1
        if seen_as == self._announced(own):
            self._outside.pop(epoch, None)
        else:
            if epoch not in self._outside:
                self._keep_on(epoch, now)
            self._outside[epoch] = seen_as
        if before is not None and before != seen_as:
            self.alarm(now)
        self._plan(pair, now + self._until_next_s(pair, now))
