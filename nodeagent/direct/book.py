"""Which peers may be reached directly: what was asked, what was answered, and what follows. Pure.

A peer is used directly after several answers in a row, and no longer after several missing ones; while it
is used it
is asked every second (in large links as often as the budget allows), otherwise ever more rarely. When
several are
lost at once, all are asked at a higher rate: what ends one direct way often ends them all. Times are arguments
(monotonic seconds).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable

import msgspec

from nodeagent.membership.peers import Peer

ASKED_PER_S = 8.0
"""First questions a second: with answers, and as many of peers, 10 kbit/s."""
AGAIN_PER_S = 16.0
"""Further questions a second, while something is in doubt."""
ALARM_PER_S = 32.0
WAIT_S = 0.4
PASSED, MISSED = 3, 3
"""Answers in a row that begin direct use, and missing ones that end it."""
PERIOD_S = 1.0
REST_S, REST_MAX_S = 2.0, 60.0
ALARM_PEERS, ALARM_S = 2, 5.0
"""So many peers lost within so many seconds are no accident of one."""
SILENT_PEERS, SILENT_S = 4, 1.0
"""So many peers were asked in vain, and nobody answered for so long: it is this node's own link."""
PORTION = 250
"""One further peer is asked at once for so many on the link: who is next is looked up for several together."""
AHEAD = 32
"""So many peers are chosen ahead from all that are due, so that not every look goes through all."""
STILL_S = 1.0
"""Whoever looks later than this was stopped: what it waited for then is held against nobody."""


class _Near(msgspec.Struct, gc=False):
    """One peer on the link. ``used``: packets go to it directly."""

    peer: Peer
    used: bool = False
    passed: int = 0
    missed: int = 0
    due: float = 0.0
    rest_s: float = REST_S
    waiting: bool = False


class Change(msgspec.Struct, frozen=True):
    """The peer is reached directly from now on, or not any more, and why not."""

    peer: Peer
    direct: bool
    why: str = ""


class DirectBook:
    """The peers on the link. :meth:`look` says whom to ask; what changes is in :meth:`changes`."""

    def __init__(self) -> None:
        self._near: dict[str, _Near] = {}  # by range
        self._doubted: dict[str, _Near] = {}  # those of them that have answered some of the last questions only
        self._pending: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # token → range, when it was sent
        self._changes: list[Change] = []
        self._first, self._again = ASKED_PER_S, AGAIN_PER_S
        self._looked = -1.0
        self._lost: list[float] = []  # when the last peers were lost
        self._alarm_until = -1.0
        self._answered = -1.0  # when anybody last did
        self._in_vain: set[str] = set()  # ranges of peers that have not, since then
        self._recent: deque[str] = deque(maxlen=SILENT_PEERS)  # ranges of those that answered last
        self._next: deque[_Near] = deque()  # who is asked next, as far as it is chosen already
        self.version = 0
        """Another number whenever a peer comes, goes, or is reached another way."""

    def __len__(self) -> int:
        return len(self._near)

    def follow(self, peers: Iterable[Peer], now: float) -> None:
        """The peers on the link that may be asked, as they are now. O(peers)."""
        present = {peer.cidr: peer for peer in peers}
        for cidr, near in list(self._near.items()):
            if present.get(cidr) != near.peer:
                if near.used:
                    self._changes.append(Change(near.peer, False, "not on this link any more"))
                del self._near[cidr]
                self._doubted.pop(cidr, None)
                self._moved()
        for cidr, peer in present.items():
            if cidr not in self._near:
                self._near[cidr] = _Near(peer, due=now)
                self._moved()

    def adopt(self, peer: Peer, now: float) -> None:
        """An earlier life of this agent used it directly: so does this one, until questions are not
        answered."""
        near = self._near.get(peer.cidr)
        if near is not None and near.peer == peer and not near.used:
            near.used, near.due, near.passed = True, now, PASSED
            self._changes.append(Change(peer, True))
            self._moved()

    def give_up(self, peer: Peer, why: str, now: float) -> None:
        """Its direct route could not be used."""
        near = self._near.get(peer.cidr)
        if near is not None and near.peer == peer and near.used:
            self._end(near, now, why)

    def used(self) -> list[Peer]:
        """Those that are reached directly."""
        return [near.peer for near in self._near.values() if near.used]

    def changes(self) -> list[Change]:
        """What has changed since the last call, in order."""
        found, self._changes = self._changes, []
        return found

    def asking(self, peer: Peer, token: bytes, now: float) -> None:
        """A question leaves, with that token."""
        near = self._near.get(peer.cidr)
        if near is not None:
            near.waiting = True
            self._pending[token] = peer.cidr, now

    def answered(self, token: bytes, peer: Peer, now: float) -> bool:
        """An answer of that peer came by the link; False when nobody waits for it."""
        pending = self._pending.get(token)
        if pending is None or pending[0] != peer.cidr:
            return False
        del self._pending[token]
        near = self._near.get(peer.cidr)
        if near is None or near.peer != peer:
            return False
        near.waiting, near.missed = False, 0
        self._answered = now
        self._in_vain.clear()
        if near.used:
            self._recent.append(peer.cidr)
        near.passed = min(PASSED, near.passed + 1)
        if near.used:
            near.due = now + self.period_s()
        elif near.passed >= PASSED:
            near.used, near.rest_s, near.due = True, REST_S, now + self.period_s()
            self._changes.append(Change(peer, True))
            self._moved()
        else:
            near.due = now  # at once: a few more, and it is used
        self._note(near)
        return True

    def hurried(self, now: float) -> bool:
        """Whether something is in doubt, so that :meth:`look` should be called more often."""
        return bool(self._doubted) or now < self._alarm_until

    def period_s(self) -> float:
        """Seconds between two questions to a peer that is used directly."""
        return max(PERIOD_S, len(self._near) / ASKED_PER_S)

    def look(self, now: float) -> list[Peer]:
        """Notice what was not answered in time; whom to ask now. Call it several times a second."""
        passed_s = max(0.0, now - self._looked) if self._looked >= 0 else 0.0
        stopped = passed_s > STILL_S
        self._looked = now
        alarm = now < self._alarm_until
        rate, again = (ALARM_PER_S, ALARM_PER_S) if alarm else (ASKED_PER_S, AGAIN_PER_S)
        self._first = min(rate, self._first + min(passed_s, 1.0) * rate)
        self._again = min(again, self._again + min(passed_s, 1.0) * again)
        while self._pending:
            token, (cidr, sent) = next(iter(self._pending.items()))
            if not stopped and now - sent < WAIT_S:
                break
            del self._pending[token]
            near = self._near.get(cidr)
            if near is not None and near.waiting:
                near.waiting = False
                if stopped:
                    near.due = now
                else:
                    self._missed(near, now)
        return self._due(now)

    def _missed(self, near: _Near, now: float) -> None:
        near.missed += 1
        near.passed = 0
        if near.used:
            self._in_vain.add(near.peer.cidr)
        if len(self._in_vain) >= SILENT_PEERS and now - self._answered > SILENT_S and self._all_silent():
            for other in self._near.values():
                if other.used:
                    self._end(other, now, "no peer on this link answered probes any more")
            return
        if near.used and near.missed >= MISSED:
            self._end(near, now, "probes were not answered any more")
        elif near.used:
            near.due = now
        elif near.missed >= MISSED:
            near.rest_s = min(REST_MAX_S, near.rest_s * 2)
            near.missed, near.due = 0, now + near.rest_s
        else:
            near.due = now + REST_S
        self._note(near)

    def _note(self, near: _Near) -> None:
        if near.missed or 0 < near.passed < PASSED:
            self._doubted[near.peer.cidr] = near
        else:
            self._doubted.pop(near.peer.cidr, None)

    def _all_silent(self) -> bool:
        """Whether those that answered last do not, either; who was not asked since then is asked first."""
        last = [near for cidr in self._recent if (near := self._near.get(cidr)) is not None and near.used]
        unasked = [near for near in last if near.peer.cidr not in self._in_vain]
        for near in unasked:
            near.due = 0.0
        self._next.clear()
        return not unasked

    def _end(self, near: _Near, now: float, why: str) -> None:
        near.used, near.passed, near.missed = False, 0, 0
        near.rest_s, near.due = REST_S, now + REST_S
        self._note(near)
        self._changes.append(Change(near.peer, False, why))
        self._moved()
        self._lost = [at for at in self._lost if now - at < ALARM_S] + [now]
        if len(self._lost) >= ALARM_PEERS and now >= self._alarm_until:
            self._alarm_until = now + 1 + len(self._near) / ALARM_PER_S
            for other in self._near.values():
                if other.used and not other.waiting:
                    other.due = now

    def _moved(self) -> None:
        self.version += 1
        self._next.clear()

    def _due(self, now: float) -> list[Peer]:
        chosen: list[Peer] = []
        # Those in doubt never at the cost of the others: they have a budget of their own.
        for near in sorted(filter(lambda near: _is_due(near, now), self._doubted.values()), key=_urgency):
            if self._again < 1:
                break
            self._again -= 1
            chosen.append(near.peer)
        if self._first < min(ASKED_PER_S, 1 + len(self._near) / PORTION):
            return chosen
        while self._first >= 1:
            if not self._next:
                due = (near for near in self._near.values() if self._is_next(near, now))
                self._next.extend(heapq.nsmallest(AHEAD, due, key=_urgency))
                if not self._next:
                    break
            near = self._next.popleft()
            if self._is_next(near, now):
                self._first -= 1
                chosen.append(near.peer)
                near.due = now + WAIT_S  # chosen once: what becomes of the question says when again
        return chosen

    def _is_next(self, near: _Near, now: float) -> bool:
        return _is_due(near, now) and near.peer.cidr not in self._doubted


def _is_due(near: _Near, now: float) -> bool:
    return near.due <= now and not near.waiting


def _urgency(near: _Near) -> tuple[bool, bool, float]:
    return not near.used, not near.missed, near.due
