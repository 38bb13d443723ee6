"""The port to a WireGuard device, with two sides: the kernel's module, and a program in userspace.

One contract suite runs against both. Everything blocks for milliseconds and is called from a worker thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Protocol


class PeerSettings(NamedTuple):
    """Where a peer is reached (address and UDP port), and which ranges are its own."""

    endpoint: tuple[str, int]
    """With port 0 there is none: the peer's own packets say where it is."""
    allowed: tuple[str, ...]
    keepalive_s: int = 0
    """Between two packets that only keep the session; the first makes it. 0: none are sent."""


class PeerState(NamedTuple):
    """A peer as the device has it; ``handshake_at`` is Unix seconds, 0: never."""

    settings: PeerSettings
    handshake_at: float = 0.0
    received: int = 0
    sent: int = 0


class DeviceState(NamedTuple):
    """The device as it is: its own public key (empty: none), its UDP port, its peers by key."""

    public_key: str
    port: int
    peers: dict[str, PeerState]


class WireGuardDevice(Protocol):
    """One device. Every call raises OSError when the device or what makes it is not there."""

    name: str
    kind: str
    """``kernel`` or ``userspace``."""

    def create(self) -> None:
        """Make the device, which is not there. Its keys and peers are lost with it."""
        ...

    def read(self) -> DeviceState:
        """What it has now."""
        ...

    def configure(self, private_key: bytes, port: int) -> None:
        """Give it its own key, by which all sessions begin anew, and the port to listen on."""
        ...

    def change(
        self, put: Mapping[str, PeerSettings], drop: Iterable[str], *, losing: Collection[str] | None = None
    ) -> None:
        """Make these peers be so, and those be gone. A range goes to the peer that was given it last.

        ``losing``: the peers that have ranges which nobody is to have any more; None: all may. The others'
        ranges stay, which else would all be away for a moment.
        """
        ...

    def nudge(self, peers: Mapping[str, int]) -> None:
        """Send a packet that keeps the session to each of these peers, which it has, now and every so many
        seconds.
        """
        ...

    def leave_address(self) -> None:
        """This machine's address is another one: send from that at once. The sessions stay."""
        ...

    def remove(self) -> None:
        """Take the device away; nothing happens where it is not."""
        ...


def difference(
    wanted: Mapping[str, PeerSettings], present: Mapping[str, PeerState], now: float
) -> tuple[dict[str, PeerSettings], list[str]]:
    """What to put and what to drop, as :meth:`WireGuardDevice.change` takes it. Pure.

    An endpoint that a peer's own packets have moved (a NAT on the way) is left alone while its session lives.
    """
    put = {
        key: settings
        for key, settings in wanted.items()
        if (there := present.get(key)) is None
        or there.settings[1:] != settings[1:]
        or (
            settings.endpoint[1]
            and there.settings.endpoint != settings.endpoint
            and now - there.handshake_at > SESSION_S
        )
    }
    return put, [key for key in present if key not in wanted]


KEEPALIVE_S = 25
"""It makes WireGuard begin a session before any packet needs it, and routers forget none."""
SESSION_S = 180.0
"""Longest life of a session without a new handshake."""
