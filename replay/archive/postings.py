"""Which events speak of which thing: the index inside an archive.

Keys are ``node/<name>``, ``range/<cidr>``, ``clb/<name>``, ``entry/<name>``, ``cluster/<name>`` and
``address/<ip>`` (a node's underlay, a reserved balancer address); an allocation counts for its node
and its range, a path of one node or between two for those nodes. ``event/parked`` are the events that
park others. Keys come from the JSON of the body, so that an event of an unknown type is indexed too.
``entries/all`` are those of all entries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from events.codec import StoredMessage
from events.types import EntryAdded, Event, EventsParked, PathLost
from replay.archive.format import IndexLine
from replay.archive.lines import messages

PARKINGS = "event/parked"
"""The key of all events that park others."""

ENTRIES = "entries", "all"
"""Kind and name of all events of entries, whichever."""

KEYS_PER_SEGMENT = 1024

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_line = msgspec.json.Decoder(IndexLine).decode
_encode_key = msgspec.json.Encoder().encode


def encode_postings(lines: Sequence[IndexLine]) -> bytes:
    """Index lines as text, each ended by a line feed."""
    text = _encode_lines(lines)
    return text if text.endswith(b"\n") else text + b"\n"


def find(lines: bytes, key: str) -> list[int]:
    """The sequences of ``key`` in the lines of an index segment, without decoding the others.

    Raises msgspec.MsgspecError for a line that is none.
    """
    start = b"[" + _encode_key(key) + b","
    place = 0 if lines.startswith(start) else lines.find(b"\n" + start) + 1
    if place == 0 and not lines.startswith(start):
        return []
    return _decode_line(lines[place : lines.find(b"\n", place)]).sequences


def names_in(lines: bytes, prefix: str) -> list[str]:
    """The keys in an index segment that begin with ``prefix``. Raises msgspec.MsgspecError."""
    start = b'["' + prefix.encode()
    return [_decode_line(line).key for line in lines.split(b"\n") if line.startswith(start)]


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
    scope: str = ""
    a: str = ""
    b: str = ""


_names = msgspec.json.Decoder(_Names).decode
_NAMES = frozenset(_Names.__struct_fields__)


class _NamesLine(msgspec.Struct, gc=False):
    """An event line, as far as the index goes; all lines of a segment are decoded by one call."""

    seq: int
    subject: str
    body: _Names


_names_lines = msgspec.json.Decoder(_NamesLine).decode_lines


def keys_of(message: StoredMessage) -> list[str]:
    """The keys of one stored event; nothing for a body that is no JSON object of the usual fields."""
    return keys_in(message.subject, message.body)


def keys_in(subject: str, body: bytes) -> list[str]:
    """The keys of the event with this body on this subject."""
    try:
        names = _names(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return _keys(subject, names)


def keys_of_event(event: Event) -> list[str]:
    """The keys of an event on the subject where it belongs."""
    fields = {name: getattr(event, name) for name in _NAMES.intersection(event.__struct_fields__)}
    if "addresses" in fields:
        fields["addresses"] = tuple(_Address(address=item.address) for item in fields["addresses"])
    return _keys_by(event.aggregate, event.verb, _Names(**fields))


def _keys(subject: str, names: _Names) -> list[str]:
    parts = subject.split(".", 4)
    return _keys_by(parts[3] if len(parts) > 3 else "", parts[-1], names)


def _keys_by(aggregate: str, verb: str, names: _Names) -> list[str]:
    """The keys; ``verb`` is the end of the subject, from the thing's name on or only the last word."""
    keys = [f"node/{names.node}"] if names.node else []
    if aggregate == "range":
        if names.cidr:
            keys.append(f"range/{names.cidr}")
        return keys
    if aggregate in ("clb", "entry") and names.name:
        keys.append(f"{aggregate}/{names.name}")
        keys.extend(["/".join(ENTRIES)] if aggregate == EntryAdded.aggregate else ())
    elif aggregate == PathLost.aggregate and names.scope in ("node", "pair"):
        keys.extend(f"node/{end}" for end in (names.a, names.b) if end)
    elif aggregate == EventsParked.aggregate:
        keys.append(PARKINGS)
    elif aggregate == "cluster" and names.cluster:
        keys.append(f"cluster/{names.cluster}")
    if aggregate in ("node", "clb"):
        used = {names.underlay, names.announced, *(item.address for item in names.addresses)} - {""}
        if verb.endswith(("holder-assigned", "holder-withdrawn")):
            used |= {names.address}
        keys.extend(f"address/{address}" for address in sorted(used))
    return keys


class Postings:
    """Collects keys over a bounded run of event segments."""

    def __init__(self) -> None:
        # key → ascending sequences
        self._sequences: defaultdict[str, list[int]] = defaultdict(list)

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """Take note of some events, in order."""
        for message in messages:
            for key in keys_of(message):
                self._sequences[key].append(message.sequence)

    def add_lines(self, data: bytes) -> None:
        """Take note of the events of a segment, by its lines. Raises msgspec.MsgspecError, ValueError."""
        try:
            decoded = _names_lines(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.add(messages(data))  # somewhere in it is a body of unusual fields, or one that is no JSON
            return
        collected = self._sequences
        for line in decoded:
            for key in _keys(line.subject, line.body):
                collected[key].append(line.seq)

    def __bool__(self) -> bool:
        return bool(self._sequences)

    def lines(self) -> list[IndexLine]:
        """The index lines, sorted by key."""
        return [IndexLine(key=key, sequences=self._sequences[key]) for key in sorted(self._sequences)]

    def blocks(self) -> Iterable[tuple[str, str, bytes]]:
        """The index lines in blocks sorted by key: first key, last key, lines. Empties the collection."""
        lines = self.lines()
        for start in range(0, len(lines), KEYS_PER_SEGMENT):
            part = lines[start : start + KEYS_PER_SEGMENT]
            yield part[0].key, part[-1].key, encode_postings(part)
        self._sequences.clear()
