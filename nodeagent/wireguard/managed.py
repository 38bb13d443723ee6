"""One WireGuard device as the keeper wants it: made, with its own key and peers, read now and again.

Everything that blocks runs in a worker thread, one call at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from nodeagent.membership.node_key import OwnKey
from nodeagent.wireguard import link
from nodeagent.wireguard.device import KEEPALIVE_S, DeviceState, PeerSettings, WireGuardDevice, difference

log = logging.getLogger("isthmus.agent.wireguard")

READ_S, READ_SHARE = 5.0, 100
"""Between two readings of all peers of the device: at least this, and so many times what the last one took."""
GREETING_S = 10.0
"""How long a session with a new key is tried for."""


class ManagedDevice:
    """``state`` is the device as it was last read, None while it was not; ``index`` 0 while there is none."""

    def __init__(self, device: WireGuardDevice, port: int) -> None:
        self.device, self.port = device, port
        self.state: DeviceState | None = None
        self.index = 0
        self.renew = False
        """Whether to send each peer that a session is kept with a packet at the next :meth:`bring`."""
        self._known: dict[str, PeerSettings] = {}
        self._read_at = self._read_took = 0.0
        self._greeted: dict[str, tuple[float, float]] = {}  # key → until when, and since when by the wall clock

    @property
    def greeting(self) -> bool:
        """Whether sessions with new keys are still to come."""
        return bool(self._greeted)

    def session(self, key: str) -> bool:
        """Whether there is, or was, a session with that key, as last read."""
        peer = self.state.peers.get(key) if self.state is not None else None
        return peer is not None and peer.handshake_at > 0

    def forget(self) -> None:
        """Something went wrong: the next :meth:`bring` reads everything, and writes what is missing."""
        self._known = {}

    def greet(self, keys: set[str]) -> None:
        """Begin sessions with keys that are new here, or to which this node is: before the next packet, and not
        when WireGuard tries again seconds later. A device that goes on from an earlier life has its sessions.
        """
        if self.state is None:
            return
        now, known = time.monotonic(), self.state.peers
        for key in keys - self._known.keys():
            self._greeted[key] = (now + GREETING_S, float(int(time.time())))
        self._greeted = {
            key: (until, since)
            for key, (until, since) in self._greeted.items()
            if key in keys and now < until and not (key in known and known[key].handshake_at >= since)
        }

    def bring(
        self, key: OwnKey, settings: link.Wanted, wanted: Mapping[str, PeerSettings], *, eager: bool
    ) -> bool:
        """Make the device and its peers be so; whether the device had to be set up. ``eager``: read it now.

        Raises OSError.
        """
        device = self.device
        fresh = not link.index_of(device.name)
        if fresh:
            log.info("making the WireGuard device %s (%s)", device.name, device.kind)
            device.create()
        now = time.time()
        wanted = {
            peer: one._replace(keepalive_s=one.keepalive_s or KEEPALIVE_S) if peer in self._greeted else one
            for peer, one in wanted.items()
        }
        pause_s = 0.0 if eager or self._greeted else max(READ_S, READ_SHARE * self._read_took)
        if fresh or not self._known or time.monotonic() - self._read_at > pause_s:
            began = time.monotonic()
            self.state = state = device.read()
            self._read_at = time.monotonic()
            self._read_took = self._read_at - began
            if (state.public_key, state.port) != (key.public, self.port):
                device.configure(key.private, self.port)
            put, drop = difference(wanted, state.peers, now)
        else:
            put = {peer: one for peer, one in wanted.items() if self._known.get(peer) != one}
            drop = [peer for peer in self._known if peer not in wanted]
        if put or drop:
            device.change(put, drop)
        if self.renew:
            self.renew = False
            kept = {peer: one for peer, one in wanted.items() if one.keepalive_s}
            device.change({peer: one._replace(keepalive_s=0) for peer, one in kept.items()}, ())
            device.change(kept, ())  # switched on again, it sends one at once
        self._known = wanted
        index, done = link.settle(device.name, settings)
        moved, self.index = index != self.index, index
        return done or fresh or moved

    def remove(self) -> None:
        """Take the device away, if it is there. Raises OSError."""
        if link.index_of(self.device.name):
            self.device.remove()
            log.info("the WireGuard device %s is gone", self.device.name)
        self.state, self.index, self._known, self._greeted = None, 0, {}, {}
