"""Judged lines without what the fold does not need: handed from the judge to the fold.

A line is nine tenths envelope. Whoever judged it has its parts in hand, so that the fold, in another
process, need neither decompress nor parse the whole of it again. The text never leaves the run that
made it; no file has this form.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, Protocol, Union

import msgspec

from events.types import EVENT_TYPES, Event, RangeFreed
from replay.archive.lines import OwnTime


class FoldPayload(Protocol):
    """An event without its place: what :func:`decode` gives, in the order of the lines."""

    @property
    def body(self) -> Event: ...


_TIMED = frozenset({RangeFreed})
"""The types whose own time is part of a check (see :class:`replay.archive.lines.OwnTime`)."""

_TYPES = tuple(
    msgspec.defstruct(
        f"FoldPayload{cls.__name__}",
        [("body", cls), *([("headers", OwnTime)] if cls in _TIMED else [])],
        tag_field="type",
        tag=number,
        array_like=True,
        frozen=True,
        gc=False,
    )
    for number, cls in enumerate(EVENT_TYPES)
)
_decode: Any = msgspec.json.Decoder(Union[_TYPES]).decode_lines  # noqa: UP007  built at run time

_opening = {cls.type_name(): b"[%d," % number for number, cls in enumerate(EVENT_TYPES)}.__getitem__
_is_timed = {cls.type_name(): cls in _TIMED for cls in EVENT_TYPES}.__getitem__


def encode(types: Sequence[str], bodies: Sequence[bytes], times: Sequence[str]) -> bytes:
    """The text of these events: their types' names, their bodies as they stand in the line, their own times."""
    parts = [b"]\n"] * (3 * len(bodies))
    parts[0::3] = map(_opening, types)
    parts[1::3] = bodies
    for at in compress(range(len(types)), map(_is_timed, types)):
        parts[3 * at + 2] = b',{"ce-time":"%b"}]\n' % times[at].encode()
    return b"".join(parts)


def decode(text: bytes) -> Sequence[FoldPayload]:
    """The events in a text that :func:`encode` made."""
    found: Sequence[FoldPayload] = _decode(text)
    return found
