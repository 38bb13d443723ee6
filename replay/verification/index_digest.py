"""What the events of a segment speak of, as one digest: the fast way to hold an index to its events.

Told by the events and told by the index, the digest is the same, or the index is wrong somewhere; and
then :func:`replay.verification.index_check.check_run` says where. Both tell the same text: for each
event a line with its keys in order, each behind a tab. A key that could be read as two makes a text
that no index tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

from events.types import EVENT_TYPES, Event
from replay.archive.postings import keys_in, keys_of_event

Speaker = str | Callable[[Any, str], str]
"""How the events of a type tell: the text before their entity, or a function of event and entity."""

_UNTOLD = "?\n"


def _line(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    text = "".join(["\t" + key for key in ordered])
    return text + "\n" if text.count("\t") == len(ordered) and "\n" not in text else _UNTOLD


def spoken_in(subject: str, body: bytes) -> str:
    """The line of the event with this body, whatever it is, on this subject."""
    return _line(keys_in(subject, body))


def tell(speakers: Sequence[Speaker], events: Sequence[Event], names: Sequence[str], data: bytes) -> str:
    """The lines of ``events``, which have these speakers and entities and were read from ``data``."""
    if b"\\" not in data:  # else a name may hold a tab or a line break: in JSON they are an escape
        text = "\n".join(
            [
                speaks + name if type(speaks) is str else speaks(event, name)  # type: ignore[operator]
                for speaks, event, name in zip(speakers, events, names, strict=True)
            ]
        )
        if "/\t" not in text and "/\n" not in text and text[-1:] != "/":  # nothing without a name
            return text + "\n"
    return "".join([_line(keys_of_event(event)) for event in events])


def digest_of(lines: Iterable[str]) -> bytes:
    """The digest of some events' lines."""
    return sha256("".join(lines).encode()).digest()


def _any(event: Event, _: str) -> str:
    return _line(keys_of_event(event))[:-1]


def _range_of_node(event: Any, name: str) -> str:
    return f"\tnode/{event.node}\trange/{name}"


def _node_at(event: Any, name: str) -> str:
    one, other = event.underlay, event.announced
    if one == other:
        return f"\taddress/{one}\tnode/{name}"
    if one > other:
        one, other = other, one
    return f"\taddress/{one}\taddress/{other}\tnode/{name}"


def _speaker(cls: type[Event]) -> Speaker:
    fields = set(cls.__struct_fields__)
    if cls.aggregate == "range":
        return _range_of_node if "node" in fields else "\trange/"
    if cls.aggregate == "node":
        return _node_at if {"underlay", "announced"} <= fields else "\tnode/"
    return _any


SPEAKERS: dict[type[Event], Speaker] = {cls: _speaker(cls) for cls in EVENT_TYPES}
"""The short ways are for the types that are nearly all of a log."""
