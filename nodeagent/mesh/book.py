"""What was asked of each peer, what was answered and what that means. Pure: times are arguments (monotonic
seconds).

A peer that does not answer is asked again twice, and its kernel with it, before it counts as silent: one lost
packet is loss, not silence. An agent that was away, or whose peer's agent is, is no sign of a broken path: the
kernel there answers then. Nothing that this process slept through is held against anybody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

from events.mesh import (
    ANSWERED,
    KERNEL,
    LARGE_LOST,
    LARGE_OK,
    LARGE_UNKNOWN,
    NEVER,
    PEERS_MAX,
    SILENT,
    UNSURE,
    MeshReport,
    PeerSeen,
    Trace,
)

Kind = Literal["small", "large", "kernel"]

WAIT_S, WAIT_MAX_S = 0.5, 3.0
"""How long an answer may take at least and at most; between, three times what it took so far."""
LATE_S = 6.0
"""An answer that comes so late still counts as one."""
TRIES = 3
STILL_S = 0.4
"""Whoever looks later than this was stopped: what it waited for then is forgotten."""
KERNEL_MISSED = 2
"""Answers of a kernel that must be missing before its node counts as silent."""
LOSSY, PATIENT = 2, 2
"""So many losses among the last questions, and twice the tries are made before a peer counts as silent."""
RECHECK_S, RECHECKED = 2.0, 8
"""Peers in trouble are asked again so often, and so many of them each time."""
OUTAGE_S = 5.0
"""What was lost in a silence of so long was an outage, and no sign of a path that loses some packets."""
AGAIN_PER_S = 32.0
"""Second questions a second, at most."""
HISTORY = 16
_MASK = (1 << HISTORY) - 1
FEW = 12
"""Peers that are named in every report, when there are no more."""


class Ask(NamedTuple):
    """To be sent now."""

    epoch: int
    kind: Kind


class _Pending(NamedTuple):
    epoch: int
    kind: Kind
    sent: float
    attempt: int


class _Peer(msgspec.Struct, gc=False):
    """``bits``: the last answers (1) and losses (0), ``asked`` of them."""

    state: int = 0
    asked: int = 0
    bits: int = 0
    rtt: float = 0.0
    jitter: float = 0.0
    answered: float = -1.0
    heard: float = -1.0
    since: float = -1.0
    trying: int = 0
    """The attempt that is being waited for; 0: none."""
    kernel_known: bool = False
    kernel_at: float = -1.0
    kernel_missed: int = 0
    large: int = LARGE_UNKNOWN
    large_since: float = -1.0
    large_at: float = -1.0
    large_trying: int = 0
    checked: float = -1.0


class Book:
    """One node's measurements. ``changed`` is set when a peer's state has changed since the last report."""

    def __init__(self) -> None:
        self._peers: dict[int, _Peer] = {}
        self._waiting: OrderedDict[tuple[Kind, bytes], _Pending] = OrderedDict()
        self._again: OrderedDict[Ask, int] = OrderedDict()
        self._fresh: OrderedDict[int, None] = OrderedDict()
        self._troubled: dict[int, None] = {}
        self._looked = -1.0
        self._allowance = AGAIN_PER_S
        self._rechecked = 0.0
        self.changed = False
        self.counted = {"asked": 0, "answered": 0, "lost": 0, "again": 0}

    def __len__(self) -> int:
        return len(self._peers)

    def follow(self, epochs: Iterable[int]) -> None:
        """The peers as they are now. O(peers)."""
        present = set(epochs)
        for gone in self._peers.keys() - present:
            del self._peers[gone]
            self._fresh.pop(gone, None)
            self._troubled.pop(gone, None)
        for epoch in present - self._peers.keys():
            self._peers[epoch] = _Peer()

    # --- what happens --------------------------------------------------------------------------------------

    def asking(self, ask: Ask, token: bytes, now: float) -> None:
        """A question leaves, with that token."""
        peer = self._peers.get(ask.epoch)
        if peer is None:
            return
        attempt = self._again.pop(ask, 1)
        if ask.kind == "small":
            peer.trying = attempt
        elif ask.kind == "large":
            peer.large_trying = attempt
        self._waiting[ask.kind, token] = _Pending(ask.epoch, ask.kind, now, attempt)
        self.counted["asked"] += 1

    def answered(self, kind: Kind, token: bytes, now: float, epoch: int | None = None) -> bool:
        """An answer came; False when nobody waits for it, or it is another peer's."""
        pending = self._waiting.get((kind, token))
        if pending is None or (epoch is not None and pending.epoch != epoch):
            return False
        del self._waiting[kind, token]
        peer = self._peers.get(pending.epoch)
        if peer is None:
            return False
        self.counted["answered"] += 1
        took = now - pending.sent
        if kind == "kernel":
            peer.kernel_known, peer.kernel_at, peer.kernel_missed = True, now, 0
            if peer.state in {SILENT, UNSURE, NEVER}:
                self._enter(pending.epoch, peer, KERNEL, now)
            return True
        if kind == "large":
            peer.large_trying = 0
            was, peer.large, peer.large_since, peer.large_at = peer.large, LARGE_OK, -1.0, now
            if was == LARGE_LOST:
                self._note(pending.epoch, peer)
        else:
            if pending.attempt == 1:
                self._outcome(peer, lost=False)
                change = abs(took - peer.rtt) if peer.rtt else 0.0
                peer.jitter += (change - peer.jitter) / HISTORY
                peer.rtt = took if not peer.rtt else peer.rtt + (took - peer.rtt) / 4
            peer.trying = 0
        if peer.state in {SILENT, UNSURE} and 0 <= peer.since < now - OUTAGE_S:
            peer.bits = peer.asked = 0
        peer.answered, peer.since = now, -1.0
        self._enter(pending.epoch, peer, ANSWERED, now)
        self._fresh[pending.epoch] = None
        self._fresh.move_to_end(pending.epoch)
        if not peer.kernel_known and peer.kernel_at < 0:
            peer.kernel_at = 0.0
            self._more(Ask(pending.epoch, "kernel"), 1)
        return True

    def heard(self, epoch: int, now: float) -> None:
        """A question of that peer came, with a word that only it can know."""
        peer = self._peers.get(epoch)
        if peer is not None:
            peer.heard = now
            if peer.state not in {ANSWERED, 0}:
                self._more(Ask(epoch, "small"), 1)  # it can be heard again: find out whether it hears us

    def look(self, now: float) -> None:
        """Notice what was not answered in time. Call it several times a second."""
        slept = self._looked >= 0 and now - self._looked > STILL_S
        self._allowance = min(AGAIN_PER_S, self._allowance + max(0.0, now - self._looked) * AGAIN_PER_S)
        self._looked = now
        if slept:
            for pending in self._waiting.values():
                peer = self._peers.get(pending.epoch)
                if peer is not None:
                    peer.trying = peer.large_trying = 0
            self._waiting.clear()
            self._again.clear()
            return
        for key, pending in list(self._waiting.items()):
            if now - pending.sent < WAIT_S:
                break
            peer = self._peers.get(pending.epoch)
            if peer is None or now - pending.sent > LATE_S:
                del self._waiting[key]
                continue
            if now - pending.sent >= self._patience(peer):
                self._missed(pending, peer, now)
        if now - self._rechecked >= RECHECK_S and self._troubled:
            self._rechecked = now
            due = sorted(self._troubled, key=lambda epoch: self._peers[epoch].checked)[:RECHECKED]
            for epoch in due:
                peer = self._peers[epoch]
                peer.checked = now
                if peer.large == LARGE_LOST and peer.state == ANSWERED:
                    self._more(Ask(epoch, "large"), 1)
                else:
                    self._more(Ask(epoch, "kernel"), 1)
                    self._more(Ask(epoch, "small"), TRIES)

    def due(self) -> list[Ask]:
        """The further questions that may leave now."""
        asks: list[Ask] = []
        for ask in self._again:
            if self._allowance < 1:
                break
            self._allowance -= 1
            asks.append(ask)
        self.counted["again"] += len(asks)
        return asks

    # --- what it means -------------------------------------------------------------------------------------

    def _patience(self, peer: _Peer) -> float:
        return min(WAIT_MAX_S, max(WAIT_S, 3 * peer.rtt))

    def _tries(self, peer: _Peer) -> int:
        """Where packets are lost now and then, several in a row are no silence yet."""
        before = peer.bits >> 1  # without the question that is being tried
        lost = max(0, peer.asked - 1) - before.bit_count()
        return TRIES * PATIENT if peer.answered >= 0 and lost >= LOSSY and peer.state == ANSWERED else TRIES

    def _missed(self, pending: _Pending, peer: _Peer, now: float) -> None:
        """One question was not answered in time; a late answer still counts, for the state."""
        if pending.kind == "kernel":
            peer.kernel_missed += 1
            return
        if pending.kind == "large":
            if peer.large_trying != pending.attempt:
                return
            peer.large_trying = 0
            if peer.trying or peer.state != ANSWERED:
                return  # nothing passes: that it is large says nothing
            if peer.large_since < 0:
                peer.large_since = pending.sent
            if pending.attempt < self._tries(peer):
                self._more(Ask(pending.epoch, "large"), pending.attempt + 1)
                self._more(Ask(pending.epoch, "small"), 2)
            elif peer.large != LARGE_LOST and peer.answered > peer.large_since:
                peer.large = LARGE_LOST
                self._note(pending.epoch, peer)
            return
        if peer.trying != pending.attempt:
            return
        peer.trying = 0
        self.counted["lost"] += 1
        if pending.attempt == 1:
            self._outcome(peer, lost=True)
        if peer.answered < pending.sent and peer.since < 0:
            peer.since = pending.sent
        if pending.attempt < self._tries(peer):
            self._more(Ask(pending.epoch, "kernel"), 1)  # before: whose answer is missing first is told first
            self._more(Ask(pending.epoch, "small"), pending.attempt + 1)
        elif peer.answered < 0 and not peer.kernel_known:
            self._enter(pending.epoch, peer, NEVER, now)
        elif not peer.kernel_known:
            self._enter(pending.epoch, peer, UNSURE, now)
        elif peer.kernel_missed >= KERNEL_MISSED * self._tries(peer) // TRIES:
            self._enter(pending.epoch, peer, SILENT, now)
        elif peer.kernel_missed == 0:
            self._enter(pending.epoch, peer, KERNEL, now)
            peer.since = now

    def _enter(self, epoch: int, peer: _Peer, state: int, now: float) -> None:
        if peer.state == state:
            return
        first = not peer.state
        peer.state = state
        peer.checked = now
        if first and state == ANSWERED:
            return  # the usual beginning: no report is hurried for it
        if state in {SILENT, UNSURE, KERNEL, NEVER} and peer.since < 0:
            peer.since = now
        self._note(epoch, peer)

    def _note(self, epoch: int, peer: _Peer) -> None:
        self.changed = True
        if peer.state not in {ANSWERED, 0} or peer.large == LARGE_LOST:
            self._troubled[epoch] = None
        else:
            self._troubled.pop(epoch, None)

    def _more(self, ask: Ask, attempt: int) -> None:
        if len(self._again) < 1024:
            self._again.setdefault(ask, attempt)

    def _outcome(self, peer: _Peer, *, lost: bool) -> None:
        peer.bits = ((peer.bits << 1) | (0 if lost else 1)) & _MASK
        peer.asked = min(HISTORY, peer.asked + 1)

    def state_of(self, epoch: int) -> int:
        """One of :data:`events.mesh.STATES`; 0 while nothing is known."""
        peer = self._peers.get(epoch)
        return peer.state if peer is not None else 0

    def passes(self, epoch: int) -> tuple[int, int]:
        """Whether small and large packets pass: 1 they do, 0 they do not, -1 it is not known."""
        peer = self._peers.get(epoch)
        if peer is None or not peer.state:
            return -1, -1
        small = 1 if peer.state in {ANSWERED, KERNEL} else 0
        return small, {LARGE_OK: 1, LARGE_LOST: 0}.get(peer.large, -1) if small else -1

    def in_trouble(self) -> list[int]:
        """Epochs of the peers that do not answer as they should, the newest trouble last."""
        return [epoch for epoch in self._troubled if self._peers[epoch].state != KERNEL]

    def counts(self) -> tuple[int, int]:
        """How many peers have ever answered, and how many do not now."""
        peers = self._peers.values()
        return sum(p.answered >= 0 for p in peers), sum(p.state in {SILENT, UNSURE} for p in peers)

    def seen(self, epoch: int, now: float) -> PeerSeen:
        """One peer, for a report. Raises KeyError for one that is none."""
        peer = self._peers[epoch]
        at = {ANSWERED: peer.answered, KERNEL: peer.kernel_at}.get(peer.state, peer.since)
        large_at = peer.large_since if peer.large == LARGE_LOST and peer.state == ANSWERED else -1.0
        lost = HISTORY - (peer.bits | (_MASK & ~((1 << peer.asked) - 1))).bit_count() if peer.asked else 0
        return PeerSeen(
            epoch,
            peer.state or NEVER,
            round(max(0.0, now - (large_at if large_at >= 0 else at)), 2) if at >= 0 else 0.0,
            round(peer.rtt * 1e6),
            round(peer.jitter * 1e6),
            round(1000 * lost / peer.asked) if peer.asked else 0,
            round(max(0.0, now - peer.heard), 2) if peer.heard >= 0 else -1.0,
            peer.large,
            round(max(0.0, now - peer.large_at), 2) if peer.large_at >= 0 else -1.0,
        )

    def report(
        self, now: float, *, unable: str = "", traces: Callable[[float], tuple[Trace, ...]] = lambda _now: ()
    ) -> MeshReport:
        """What is new, what is in trouble, and the numbers; what it names is told once."""
        troubled = list(self._troubled)[-(PEERS_MAX // 2) :]
        chosen = dict.fromkeys(troubled)
        if len(self._peers) <= FEW:
            chosen |= dict.fromkeys(epoch for epoch, peer in self._peers.items() if peer.state)
        for epoch in reversed(self._fresh):
            if len(chosen) >= PEERS_MAX:
                break
            chosen[epoch] = None
        self._fresh.clear()
        self.changed = False
        measured, silent = self.counts()
        return MeshReport(
            peers=tuple(self.seen(epoch, now) for epoch in chosen),
            measured=measured,
            silent=silent,
            unable=unable,
            traces=traces(now),
        )
