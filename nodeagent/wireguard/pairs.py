"""Which of a node's WireGuard devices a pair of keys uses: names and UDP ports. Pure.

A device has one private key, and a range there belongs to one peer. For an old and a new key to be valid side
by side each key of a node has a slot, 0 or 1, in turn; a node has a device for each pair of slots in use: its
own key's, and the peer's. Most nodes have one or two, and none more than four. Both ends find the same pair of
devices from the log alone.
"""

from __future__ import annotations

from typing import NamedTuple

from nodeagent.config import DEVICE_NAME_LIMIT

SLOTS = (0, 1)


class Pair(NamedTuple):
    """The slot of the own key, and that of the peer's."""

    own: int
    peer: int

    @property
    def number(self) -> int:
        """0 to 3: what tells the device's name and port from the others'."""
        return 2 * self.own + self.peer

    @property
    def turned(self) -> Pair:
        """The pair as the peer sees it."""
        return Pair(self.peer, self.own)

    def name(self, tunnel: str) -> str:
        """The device that belongs to a tunnel device."""
        return f"{_base(tunnel)}{self.number}"

    def port(self, first: int) -> int:
        """The UDP port that the device listens on, of a node that announces ``first``."""
        return first + self.number


PAIRS = tuple(Pair(own, peer) for own in SLOTS for peer in SLOTS)


def device_names(tunnel: str) -> tuple[str, ...]:
    """All devices that may belong to a tunnel device."""
    return tuple(pair.name(tunnel) for pair in PAIRS)


def port_range(first: int) -> str:
    """The UDP ports of all devices of a node that announces ``first``, as nftables compares them."""
    return f"{first}-{first + len(PAIRS) - 1}"


def name_pattern(tunnel: str) -> str:
    """What nftables compares a device's name with to know all of them."""
    return f"{_base(tunnel)}*"


def _base(tunnel: str) -> str:
    return f"{tunnel[: DEVICE_NAME_LIMIT - 4]}-wg"
