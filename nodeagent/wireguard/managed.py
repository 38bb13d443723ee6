"""One WireGuard device as the keeper wants it: made, with its own key and peers, read now and again.

Everything that blocks runs in a worker thread, one call at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Container, Iterable, Mapping
from typing import NamedTuple

from nodeagent.membership.node_key import PrivateKey
from nodeagent.wireguard import link
from nodeagent.wireguard.device import (
    KEEPALIVE_S,
    SESSION_S,
    DeviceState,
    PeerSettings,
    PeerState,
    WireGuardDevice,
    difference,
)

log = logging.getLogger("isthmus.agent.wireguard")

READ_S, READ_SHARE = 5.0, 100
"""Between two readings of all peers of the device: at least this, and so many times what the last one took."""
EAGER_SHARE = 10
"""The same while sessions are awaited."""
LINGER_S = 2.0
"""How long what is not wanted any more still takes packets: some are under way, and the fast path follows."""
GREETING_S = 10.0
"""How long a session with a new key is tried for."""
VAIN_S = 20.0
"""How long another session is tried for in vain, once one is over: four handshakes."""


class _Session(NamedTuple):
    """``made_at`` as the device says it, the rest in monotonic seconds; ``sent`` bytes when it was over."""

    made_at: float
    seen_at: float
    sent: int
    tried_at: float = 0.0

    def next(self, peer: PeerState, now: float) -> _Session:
        """What is known of it after another look at the peer."""
        if peer.handshake_at != self.made_at:
            return _Session(peer.handshake_at, now, peer.sent)
        if now - self.seen_at <= SESSION_S:
            return self._replace(sent=peer.sent)
        return self._replace(tried_at=now) if peer.sent > self.sent and not self.tried_at else self

    def in_vain(self, now: float) -> bool:
        """Whether there was one, it is over, and what was sent since has begun no other one."""
        return bool(self.made_at and self.tried_at) and now - self.tried_at > VAIN_S


class ManagedDevice:
    """``state`` is the device as it was last read, None while it was not; ``index`` 0 while there is none."""

    def __init__(self, device: WireGuardDevice, port: int) -> None:
        self.device, self.port = device, port
        self.state: DeviceState | None = None
        self.index = 0
        self.renew = False
        """Whether to send each peer that a session is kept with a packet at the next :meth:`bring`."""
        self._address = ""
        self._known: dict[str, PeerSettings] = {}
        self._surplus: dict[str, float] = {}  # peer that is not wanted any more → since when
        self._idle_since = 0.0
        self._read_at = self._read_took = 0.0
        self._greeted: dict[str, tuple[float, float]] = {}  # key → until when, and since when by the wall clock
        self._sessions: dict[str, _Session] = {}
        self._forgotten: set[str] = set()  # keys with which there was a session before they were made anew

    @property
    def greeting(self) -> bool:
        """Whether sessions with new keys are still to come."""
        return bool(self._greeted)

    @property
    def received(self) -> int:
        """Bytes that came from all peers, as last read."""
        return sum(peer.received for peer in self.state.peers.values()) if self.state is not None else 0

    def session(self, key: str) -> bool:
        """Whether there is, or was, a session with that key, as last read."""
        peer = self.state.peers.get(key) if self.state is not None else None
        return peer is not None and (peer.handshake_at > 0 or key in self._forgotten)

    def forget(self) -> None:
        """Something went wrong: the next :meth:`bring` reads everything, and writes what is missing."""
        self._known = {}

    def lost(self) -> None:
        """It could not be made so: nothing is known of it, and nothing must lead there."""
        self.state, self.index, self._known = None, 0, {}

    def bring(
        self, key: PrivateKey, settings: link.Wanted, wanted: Mapping[str, PeerSettings], *, eager: bool
    ) -> bool:
        """Make the device and its peers be so; whether the device had to be set up. ``eager``: read it soon.

        Peers that are not wanted any more stay until :meth:`trim`. Raises OSError.
        """
        device = self.device
        anew = not link.index_of(device.name)
        if anew:
            log.info("making the WireGuard device %s (%s)", device.name, device.kind)
            device.create()
        made = anew
        known: Container[str] = self._known
        now = time.time()
        often = self._greeted or eager
        pause_s = EAGER_SHARE * self._read_took if often else max(READ_S, READ_SHARE * self._read_took)
        reads = anew or not self._known or time.monotonic() - self._read_at > pause_s
        if reads:
            began = time.monotonic()
            before, self.state = self.state, device.read()
            self._read_at = time.monotonic()
            self._read_took = self._read_at - began
            if before is None or anew:
                known = self.state.peers  # it goes on from an earlier life, with its sessions, or is empty
            if (self.state.public_key, self.state.port) != (key.public, self.port):
                anew |= self.state.public_key != key.public
                device.configure(key.private, self.port)
        self._greet(wanted, () if anew else known)
        wanted = {
            peer: one._replace(keepalive_s=one.keepalive_s or KEEPALIVE_S) if peer in self._greeted else one
            for peer, one in wanted.items()
        }
        if reads and self.state is not None:
            put, surplus = difference(wanted, self.state.peers, now)
        else:
            put = {peer: one for peer, one in wanted.items() if self._known.get(peer) != one}
            surplus = [peer for peer in self._known if peer not in wanted]
        since = time.monotonic()
        for peer in surplus:
            self._surplus.setdefault(peer, since)
        stuck = self._stuck(wanted) if reads else ()
        if put or stuck:
            put.update((peer, wanted[peer]) for peer in stuck)
            device.change(put, stuck, losing=self._losing(put, wanted))
        if self._address != settings.underlay:
            if self._address and not anew:
                device.leave_address()
                self.renew = True
            self._address = settings.underlay
        if self.renew:
            self.renew = False
            device.nudge({peer: one.keepalive_s for peer, one in wanted.items() if one.keepalive_s})
        self._known = wanted
        index, done = link.settle(device.name, settings)
        moved, self.index = index != self.index, index
        return done or made or moved

    def _stuck(self, wanted: Collection[str]) -> list[str]:
        """Peers to be made anew: their session is over, and what is sent begins no other one.

        A node remembers the largest time that a peer has begun a session with, and takes none that is not
        larger (section 5.1 of the WireGuard paper): from a peer whose wall clock was days ahead and was set
        right, none for days, unless it forgets the peer. With its session nothing is lost.
        """
        now, there = time.monotonic(), self.state.peers if self.state is not None else {}
        self._forgotten.intersection_update(wanted)
        self._sessions = {
            key: self._sessions.get(key, _Session(peer.handshake_at, now, peer.sent)).next(peer, now)
            for key, peer in there.items()
            if key in wanted
        }
        stuck = [key for key, session in self._sessions.items() if session.in_vain(now)]
        for key in stuck:
            log.info("%s takes no new session with a peer, or finds none: it forgets %s", self.device.name, key)
            del self._sessions[key]
        self._forgotten.update(stuck)
        return stuck

    def _losing(self, put: Iterable[str], wanted: Mapping[str, PeerSettings]) -> set[str]:
        """Which of those peers have ranges that no peer is to have; one that moves is taken from its last."""
        ranges = {cidr for one in wanted.values() for cidr in one.allowed}
        there = self.state.peers if self.state is not None else {}
        had = {key: {*_ranges(self._known.get(key))} for key in put}
        for key in had.keys() & there.keys():
            had[key].update(there[key].settings.allowed)
        return {key for key, cidrs in had.items() if not cidrs <= ranges}

    def trim(self) -> None:
        """Take away the peers that have not been wanted for :data:`LINGER_S`. Raises OSError."""
        self._idle_since = 0.0
        self._surplus = {peer: at for peer, at in self._surplus.items() if peer not in self._known}
        over = [peer for peer, at in self._surplus.items() if time.monotonic() - at > LINGER_S]
        if over:
            self.device.change({}, over)
            for peer in over:
                del self._surplus[peer]

    def leave(self) -> None:
        """Take the device away when it has not been wanted for :data:`LINGER_S`. Raises OSError."""
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since > LINGER_S:
            self.remove()

    def _greet(self, keys: Collection[str], known: Container[str]) -> None:
        """Begin sessions with keys that are new here, or to which this node is: before the next packet, and not
        when WireGuard tries again seconds later.
        """
        now = time.monotonic()
        for key in keys:
            if key not in known:
                self._greeted[key] = (now + GREETING_S, float(int(time.time())))
        there = self.state.peers if self.state is not None else {}
        self._greeted = {
            key: (until, since)
            for key, (until, since) in self._greeted.items()
            if key in keys and now < until and not (key in there and there[key].handshake_at >= since)
        }

    def remove(self) -> None:
        """Take the device away, if it is there. Raises OSError."""
        if link.index_of(self.device.name):
            self.device.remove()
            log.info("the WireGuard device %s is gone", self.device.name)
        self.state, self.index, self._known, self._greeted, self._surplus = None, 0, {}, {}, {}
        self._sessions, self._forgotten = {}, set()


def _ranges(settings: PeerSettings | None) -> tuple[str, ...]:
    return settings.allowed if settings is not None else ()
