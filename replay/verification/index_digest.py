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

IndexKeys = str | Callable[[Any, str], str]
"""How the events of a type tell: the text before their entity, or a function of event and entity."""

_AMBIGUOUS = "?\n"


def _line(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    text = "".join(["\t" + key for key in ordered])
    return text + "\n" if text.count("\t") == len(ordered) and "\n" not in text else _AMBIGUOUS


def index_line(subject: str, body: bytes) -> str:
    """The line of the event with this body, whatever it is, on this subject."""
    return _line(keys_in(subject, body))


def index_lines(rules: Sequence[IndexKeys], events: Sequence[Event], names: Sequence[str], data: bytes) -> str:
    """The lines of ``events``, which have these rules and entities and were read from ``data``."""
    if b"\\" not in data:  # else a name may hold a tab or a line break: in JSON they are an escape
        text = "\n".join(
            [
                rule + name if type(rule) is str else rule(event, name)  # type: ignore[operator]
                for rule, event, name in zip(rules, events, names, strict=True)
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


def _keys_for(cls: type[Event]) -> IndexKeys:
    fields = set(cls.__struct_fields__)
    if cls.aggregate == "range":
        return _range_of_node if "node" in fields else "\trange/"
    if cls.aggregate == "node":
        return _node_at if {"underlay", "announced"} <= fields else "\tnode/"
    return _any


INDEX_KEYS: dict[type[Event], IndexKeys] = {cls: _keys_for(cls) for cls in EVENT_TYPES}
"""The short ways are for the types that are nearly all of a log."""
