"""Many messages of one shape at once: their bytes are a table, and what differs between them are its columns.

Ten thousand peers are thirty thousand messages, of which all but a dozen bytes are the same. A message is
repeated, and each byte that differs is written for all of them by one assignment to a slice with a step; a dump
is read in the same way. That takes no step of Python for a message, which is what a row costs otherwise.
Pure; what a message means is said elsewhere: a :class:`Shape` is made from an encoder, a :class:`Layout` from
a format.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

SEQUENCE = 8
"""Where a message's sequence number begins (``struct nlmsghdr``)."""


class Shape(NamedTuple):
    """Where a message has each byte of its key and of its value."""

    key: tuple[tuple[int, ...], ...]
    value: tuple[tuple[int, ...], ...]


def shape(encode: Callable[[bytes, bytes], bytes], key_bytes: int, value_bytes: int) -> Shape:
    """The shape of what ``encode`` makes of keys and values of these lengths: found by asking it.

    Only for an encoder that copies each of their bytes to the same places whatever the others are.
    """
    key, value = bytes(key_bytes), bytes(value_bytes)
    plain = encode(key, value)
    return Shape(
        tuple(_changed(plain, encode(_marked(key, at), value)) for at in range(key_bytes)),
        tuple(_changed(plain, encode(key, _marked(value, at))) for at in range(value_bytes)),
    )


def write(
    template: bytes, shape: Shape, first_sequence: int, keys: Sequence[bytes], values: Sequence[bytes]
) -> bytearray:
    """``template`` once for each key and value, numbered from ``first_sequence``.

    Raises ValueError when a key or a value has another length than the shape.
    """
    count, step = len(keys), len(template)
    found = bytearray(template * count)
    numbers = array("I", range(first_sequence, first_sequence + count)).tobytes()
    for at in range(4):
        found[SEQUENCE + at :: step] = numbers[at::4]
    for fields, places in ((keys, shape.key), (values, shape.value)):
        joined, width = b"".join(fields), len(places)
        for at, targets in enumerate(places):
            column = joined[at::width]
            for target in targets:
                found[target::step] = column
    return found


class Layout:
    """Messages of one length, told by bytes that are the same in all of them, and where each has key and value.

    ``fields`` is a :mod:`struct` format whose padding (``x``) may be anything; ``constants`` are the others.
    ``key`` and ``value`` say which byte of the message is each of theirs. ``choice`` is a byte of the message
    (of the padding) and what it may be.
    """

    def __init__(
        self,
        fields: str,
        constants: Sequence[bytes],
        key: Sequence[int],
        value: Sequence[int],
        choice: tuple[int, bytes] | None = None,
    ) -> None:
        packed = struct.pack(fields, *constants)
        mask = struct.pack(fields, *(b"\xff" * len(field) for field in constants))
        self.step = len(packed)
        self._constants = tuple((at, packed[at : at + 1]) for at in range(self.step) if mask[at])
        self._key, self._value, self._choice = tuple(key), tuple(value), choice

    def leading(self, data: bytes, offset: int, count: int) -> int:
        """How many of the ``count`` messages from ``offset`` on are of this layout before one is not."""
        step = self.step
        end = offset + count * step
        if self._choice is not None:
            at, allowed = self._choice
            column = data[offset + at : end : step]
            if other := column.translate(None, allowed):
                count = column.index(other[0])
                end = offset + count * step
        for at, constant in self._constants:
            column = data[offset + at : end : step]
            if column != constant * count:
                count = len(column) - len(column.lstrip(constant))
                end = offset + count * step
        return count

    def read(self, data: bytes, offset: int, count: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Keys and values of ``count`` messages from ``offset`` on."""
        end = offset + count * self.step
        return (
            _gathered(data, offset, end, self.step, self._key),
            _gathered(data, offset, end, self.step, self._value),
        )


def big_endian(start: int, size: int) -> tuple[int, ...]:
    """The places of a native number's bytes, the most significant first."""
    places = tuple(range(start, start + size))
    return places if sys.byteorder == "big" else places[::-1]


def _gathered(data: bytes, offset: int, end: int, step: int, places: tuple[int, ...]) -> tuple[bytes, ...]:
    width, count = len(places), (end - offset) // step
    joined = bytearray(width * count)
    for at, place in enumerate(places):
        joined[at::width] = data[offset + place : end : step]
    return _splitter(width, count).unpack(joined)


@lru_cache(maxsize=64)
def _splitter(width: int, count: int) -> struct.Struct:
    return struct.Struct(f"{width}s" * count)


def _marked(field: bytes, at: int) -> bytes:
    return field[:at] + b"\xff" + field[at + 1 :]


def _changed(plain: bytes, other: bytes) -> tuple[int, ...]:
    return tuple(at for at, (one, two) in enumerate(zip(plain, other, strict=True)) if one != two)
