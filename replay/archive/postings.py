"""Which events speak of which thing: the index inside an archive.

Keys are ``node/<name>``, ``range/<cidr>``, ``clb/<name>``, ``cluster/<name>`` and
``address/<ip>`` (a node's underlay, a reserved balancer address); an allocation counts for its node
and its range. Keys come from the JSON of the body, so that an event of an unknown type
is indexed too.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from events.codec import StoredMessage
from replay.archive.format import IndexLine

KEYS_PER_SEGMENT = 1024

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_line = msgspec.json.Decoder(IndexLine).decode
_encode_key = msgspec.json.Encoder().encode


def find(lines: bytes, key: str) -> list[int]:
    """The sequences of ``key`` in the lines of an index segment, without decoding the others.

    Raises msgspec.MsgspecError for a line that is none.
    """
    start = b"[" + _encode_key(key) + b","
    place = 0 if lines.startswith(start) else lines.find(b"\n" + start) + 1
    if place == 0 and not lines.startswith(start):
        return []
    return _decode_line(lines[place : lines.find(b"\n", place)]).sequences


class _Address(msgspec.Struct, gc=False):
    address: str = ""


class _Names(msgspec.Struct, gc=False):
    underlay: str = ""
    announced: str = ""
    addresses: tuple[_Address, ...] = ()
    node: str = ""
    cidr: str = ""
    name: str = ""
    address: str = ""
    cluster: str = ""


_names = msgspec.json.Decoder(_Names).decode


def keys_of(message: StoredMessage) -> list[str]:
    """The keys of one stored event; nothing for a body that is no JSON object of the usual fields."""
    try:
        names = _names(message.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    keys = []
    if names.node:
        keys.append(f"node/{names.node}")
    parts = message.subject.split(".", 4)
    aggregate = parts[3] if len(parts) > 3 else ""
    if aggregate == "range" and names.cidr:
        keys.append(f"range/{names.cidr}")
    elif aggregate == "clb" and names.name:
        keys.append(f"clb/{names.name}")
    elif aggregate == "cluster" and names.cluster:
        keys.append(f"cluster/{names.cluster}")
    if aggregate in ("node", "clb"):
        used = {names.underlay, names.announced, *(item.address for item in names.addresses)} - {""}
        if parts[-1].endswith(("holder-assigned", "holder-withdrawn")):
            used |= {names.address}
        keys.extend(f"address/{address}" for address in sorted(used))
    return keys


class Postings:
    """Collects keys over a bounded run of event segments."""

    def __init__(self) -> None:
        # key → ascending sequences
        self._sequences: dict[str, list[int]] = {}

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """Take note of some events, in order."""
        for message in messages:
            for key in keys_of(message):
                self._sequences.setdefault(key, []).append(message.sequence)

    def __bool__(self) -> bool:
        return bool(self._sequences)

    def blocks(self) -> Iterable[tuple[str, str, bytes]]:
        """The index lines in blocks sorted by key: first key, last key, lines. Empties the collection."""
        names = sorted(self._sequences)
        for start in range(0, len(names), KEYS_PER_SEGMENT):
            part = names[start : start + KEYS_PER_SEGMENT]
            lines = _encode_lines([IndexLine(key=key, sequences=self._sequences[key]) for key in part])
            yield part[0], part[-1], lines if lines.endswith(b"\n") else lines + b"\n"
        self._sequences.clear()
