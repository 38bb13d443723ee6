"""Checks of plain input that the shape of a command cannot express. Each raises BadRequest."""

from __future__ import annotations

import math

from controlplane.cluster.addressing.addresses import address_value
from events.errors import BadRequest

TEXT_LIMIT = 512
"""Longest free text (a reason, a name of a network) in characters: it is stored for ever."""


def text(value: str, what: str, *, limit: int = TEXT_LIMIT, empty: bool = True) -> str:
    """Return ``value`` if it is printable and at most ``limit`` characters. Raises BadRequest(bad_request)."""
    if len(value) > limit:
        raise BadRequest(
            "bad_request",
            f"{what} has {len(value):,} characters, the limit is {limit}",
            field=what,
            length=len(value),
            limit=limit,
        )
    if not value.isprintable():
        raise BadRequest("bad_request", f"{what} contains unprintable characters", field=what)
    if not empty and not value.strip():
        raise BadRequest("bad_request", f"{what} is empty", field=what)
    return value


def whole(value: int, what: str, low: int, high: int) -> int:
    """Return ``value`` if it is within ``low`` … ``high``. Raises BadRequest(bad_request)."""
    if not low <= value <= high:
        raise BadRequest(
            "bad_request", f"{what} is {value}; the bounds are {low} … {high}", field=what, min=low, max=high
        )
    return value


def seconds(value: float, what: str, low: float, high: float) -> float:
    """Return ``value`` if it is finite and within ``low`` … ``high``. Raises BadRequest(bad_request)."""
    if not math.isfinite(value) or not low <= value <= high:
        raise BadRequest(
            "bad_request",
            f"{what} is {value:g} s; the bounds are {low:g} … {high:g} s",
            field=what,
            min=low,
            max=high,
        )
    return value


def unicast(value: str, what: str) -> int:
    """The integer of an address by which a host can be reached. Raises BadRequest(underlay_address_invalid)."""
    address = address_value(value)
    if address is None:
        raise BadRequest(
            "underlay_address_invalid", f"{what} {value[:64]!r} is not an IPv4 address", given=value[:64]
        )
    top = address >> 24
    if top in {0, 127} or top >= 224 or address >> 16 == 0xA9FE:
        kind = (
            "loopback" if top == 127 else "link-local" if address >> 16 == 0xA9FE else "not a unicast address"
        )
        raise BadRequest(
            "underlay_address_invalid",
            f"{what} {value} is {kind}; give the address by which other nodes reach this one",
            given=value,
        )
    return address
