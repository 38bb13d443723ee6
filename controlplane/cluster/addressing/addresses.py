"""IPv4 addresses and networks as integers, and back.

Pure arithmetic for the planner and the overlap checks; it knows nothing of clusters. The standard
library's objects cost several microseconds each, which a command path with thousands of joins a
second would feel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from events.errors import Refused

_OCTETS = {str(value): value for value in range(256)}
"""The only spellings of a byte: with leading zeros it would be octal to some."""


class Net(NamedTuple):
    """An IPv4 network: ``first`` is its network address as an integer, ``size`` its number of addresses."""

    first: int
    size: int

    @property
    def last(self) -> int:
        """The broadcast address as an integer."""
        return self.first + self.size - 1

    @property
    def prefix(self) -> int:
        """The length of the mask, 0 … 32."""
        return 33 - self.size.bit_length()

    def __str__(self) -> str:
        return f"{address_text(self.first)}/{self.prefix}"

    def overlaps(self, other: Net) -> bool:
        """Whether the two share an address."""
        return self.first < other.first + other.size and other.first < self.first + self.size

    def contains(self, other: Net) -> bool:
        """Whether every address of ``other`` is inside."""
        return self.first <= other.first and other.first + other.size <= self.first + self.size

    def has(self, address: int) -> bool:
        """Whether the address is inside."""
        return self.first <= address < self.first + self.size


def address_text(value: int) -> str:
    """``0x0A000001`` → ``10.0.0.1``."""
    return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"


def address_value(text: str) -> int | None:
    """``10.0.0.1`` → its integer; None when it is no dotted quad (a leading zero would mean octal)."""
    try:
        a, b, c, d = text.split(".")
        return _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
    except (ValueError, KeyError):
        return None


@lru_cache(maxsize=1024)  # a cluster's own few are asked about at every join
def network(text: str, what: str = "CIDR") -> Net:
    """Parse ``10.3.0.0/16``. ``what`` names the field in the message.

    Raises Refused(cidr_invalid) when it is no IPv4 network or has host bits set; the message then
    shows the nearest valid one.
    """
    quad, slash, mask = text.partition("/")
    value = address_value(quad)
    if value is None or not slash or not (mask.isascii() and mask.isdigit()) or len(mask) > 2 or int(mask) > 32:
        hint = f"; did you mean {quad}/32?" if value is not None and not slash else ""
        raise Refused(
            "cidr_invalid",
            f"{what} {text[:64]!r} is not an IPv4 network such as 10.3.0.0/16{hint}",
            given=text[:64],
        )
    size = 1 << (32 - int(mask))
    if value & (size - 1):
        nearest = Net(value & ~(size - 1), size)
        raise Refused(
            "cidr_invalid",
            f"{what} {text} has host bits set: {quad} is not the first address of a /{mask}; "
            f"did you mean {nearest}?",
            given=text,
            nearest=str(nearest),
        )
    return Net(value, size)
