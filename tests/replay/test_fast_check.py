"""The fast judge of event lines against the careful one: never content where the other complains."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from itertools import product
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.chain import CHAIN_HEADER, CHAINED_HEADERS, genesis
from events.codec import StoredMessage
from events.ids import event_id
from events.subjects import event as subject_of
from events.types import EVENT_TYPES
from replay.archive.lines import decode_chain_lines, encode_messages
from replay.archive.postings import keys_in, keys_of_event
from replay.verification.fast_check import Position, plain
from replay.verification.findings import Finding
from replay.verification.full_check import CLOCKS, full_check
from replay.verification.index_digest import INDEX_KEYS, index_line, index_lines
from tests.replay.histories import CLUSTER, history

MESSAGES = history(23, 240)
FREE = {"ce-correlationid", "ce-causationid", "ce-actor", "ce-source", "traceparent"}
HEADERS = (*CHAINED_HEADERS, CHAIN_HEADER, "Nats-Msg-Id")
INT64 = st.integers(-(2**63), 2**63 - 1)
PLAIN_ODD = ["", "0", "1", "2", "-1", "01", "1_0", "a\nb", "ü", "２", "isthmus.other.events.node.a.joined"]
ODD = st.one_of(
    st.text(max_size=8),
    st.sampled_from(PLAIN_ODD),
    st.sampled_from([name for message in MESSAGES[:40] for name in message.headers.values()]),
)
SPELLINGS = [
    "2026-03-02T08:00:00Z",
    "2026-03-02T08:00:00.000000",
    "2026-02-31T08:00:00.000000Z",
    "2026-03-02",
    "later",
    "2026-03-02 08:00:00.000000Z",
    "2026-03-02T08:00:00.000000+00:00",
    "2026-W10-1T08:00:00.0000001Z",
]
TIMES = st.sampled_from(SPELLINGS)  # fmt: skip


def before(first: int) -> Position:
    """A position in front of the message at this index, reached by the careful judge."""
    position = Position(genesis(CLUSTER).digest, 0)
    for name, value in reached(first).items():
        setattr(position, name, value)
    position.begun = bytearray(position.begun)
    return position


@cache
def reached(first: int) -> dict[str, object]:
    position = Position(genesis(CLUSTER).digest, 0)
    found: list[Finding] = []
    full_check(decode_chain_lines(encode_messages(MESSAGES[:first])), CLUSTER, position, found)
    assert not found
    return facts(position)


def facts(position: Position) -> dict[str, object]:
    return {name: getattr(position, name) for name in Position.__slots__}


@settings(max_examples=60)
@given(st.integers(0, len(MESSAGES) - 1), st.integers(1, 80), st.booleans())
def test_sound_lines_are_plain_from_wherever_to_wherever_and_leave_both_judges_at_one_place(
    first, count, alone
):
    data = encode_messages(MESSAGES[first : first + count])
    lines = decode_chain_lines(data)
    fast, slow = before(first), before(first)
    if alone:  # a segment by itself knows the digest before it, and not the command
        for position in (fast, slow):
            position.opening = position.closing = None
            position.begun = bytearray()
            position.last_ns = 0
    found: list[Finding] = []
    due = plain(data, CLUSTER, fast)
    full_check(lines, CLUSTER, slow, found)
    assert found == []
    assert due is not None
    assert [line.seq for line in due] == sorted({line.seq for line in due})
    assert due[0].seq == lines[0].seq
    assert facts(fast) == facts(slow)


def altered(part: list[StoredMessage], data: st.DataObject) -> list[StoredMessage]:
    """One thing is changed, anywhere and to anything."""
    at = data.draw(st.integers(0, len(part) - 1), "at")
    message = part[at]
    headers = dict(message.headers)
    kind = data.draw(
        st.sampled_from(["header", "time", "subject", "body", "sequence", "clock", "drop", "swap", "twice"])
    )
    match kind:
        case "header":
            headers[data.draw(st.sampled_from(HEADERS), "header")] = data.draw(ODD, "value")
            message = message._replace(headers=headers)
        case "time":
            headers["ce-time"] = data.draw(TIMES, "time")
            message = message._replace(headers=headers)
        case "subject":
            message = message._replace(subject=data.draw(ODD, "subject"))
        case "body":
            body = bytearray(message.body)
            place = data.draw(st.integers(0, len(body) - 1), "place")
            body[place : place + 1] = data.draw(st.binary(max_size=2), "bytes")
            message = message._replace(body=bytes(body))
        case "sequence":
            message = message._replace(sequence=data.draw(st.integers(0, 2**62), "sequence"))
        case "clock":
            message = message._replace(recorded_ns=data.draw(INT64, "ns"))
        case "drop":
            return part[:at] + part[at + 1 :]
        case "swap":
            return part[:at] + part[at : at + 2][::-1] + part[at + 2 :]
        case "twice":
            return part[: at + 1] + part[at:]
    return [*part[:at], message, *part[at + 1 :]]


def forged(part: list[StoredMessage], digest: bytes, *, renumber: bool, rename: bool) -> list[StoredMessage]:
    """Whoever altered the lines knows the format, and makes numbers, ids and digests fit again."""
    done = []
    for offset, message in enumerate(part):
        headers, sequence = dict(message.headers), message.sequence
        if renumber:
            sequence = part[0].sequence + offset
        if rename and headers["ce-txindex"].isdecimal() and headers["ce-txindex"].isascii():
            headers["ce-id"] = event_id(headers["ce-commandid"], int(headers["ce-txindex"]))
            headers["Nats-Msg-Id"] = headers["ce-id"]
        frame = [str(sequence), message.subject, *(headers.get(name, "") for name in CHAINED_HEADERS)]
        framed = "\n".join([*frame, str(len(message.body)), ""]).encode() + message.body
        digest = sha256(digest + framed).digest()
        headers[CHAIN_HEADER] = digest.hex()
        done.append(message._replace(sequence=sequence, headers=headers))
    return done


def compare(first: int, text: bytes) -> bool:
    """Hold the judges together over these lines; whether the careful one complained."""
    lines = decode_chain_lines(text)
    found: list[Finding] = []
    fast, slow, was = before(first), before(first), facts(before(first))
    full_check(lines, CLUSTER, slow, found)
    complaints = [finding for finding in found if finding.check != CLOCKS]
    if plain(text, CLUSTER, fast) is None:
        assert facts(fast) == was, "a judge that says no has not moved"
    else:
        assert complaints == []
        assert facts(fast) == facts(slow)
    return bool(complaints)


@settings(max_examples=200)
@given(st.data())
def test_what_the_careful_judge_complains_of_is_never_plain(data):
    first = data.draw(st.integers(0, len(MESSAGES) - 12), "first")
    part = altered(MESSAGES[first : first + 12], data)
    if data.draw(st.booleans(), "forged"):
        renumber, rename = data.draw(st.booleans(), "renumber"), data.draw(st.booleans(), "new ids")
        part = forged(part, before(first).digest, renumber=renumber, rename=rename)
    try:
        text = encode_messages(part)
        decode_chain_lines(text)
    except msgspec.MsgspecError:
        return
    compare(first, text)


@pytest.mark.parametrize("rename", [False, True], ids=["", "new-ids"])
@pytest.mark.parametrize("names", [*[(name,) for name in HEADERS], ("ce-id", "Nats-Msg-Id")], ids="+".join)
def test_no_header_of_a_chain_that_was_made_to_fit_slips_through(names, rename):
    values = {*PLAIN_ODD, *SPELLINGS, *MESSAGES[60].headers.values()}
    complained = 0
    for at, value in product((0, 5), sorted(values)):
        part = MESSAGES[40:48]
        part[at] = part[at]._replace(headers=part[at].headers | dict.fromkeys(names, value))
        part = forged(part, before(40).digest, renumber=True, rename=rename)
        complained += compare(40, encode_messages(part))
    made_anew = {CHAIN_HEADER, *({"ce-id", "Nats-Msg-Id"} if rename else ())}
    assert complained or set(names) <= FREE | made_anew


@pytest.mark.parametrize("label", ["node.left.v1", "", "ü"])
def test_a_line_that_calls_its_event_something_else_is_not_plain(label):
    text = encode_messages(MESSAGES[40:48])
    name = f'"type":"{MESSAGES[43].headers["ce-type"]}"'.encode()
    assert name in text
    assert compare(40, text.replace(name, f'"type":"{label}"'.encode(), 1))


NAMES = st.sampled_from(["", "a", "b", "10.0.0.1", "10.0.0.2", "10.9.0.0/26", "a\tnode/b", "a\nb", "ü", "a\\b"])


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field, its texts out of a few that meet each other."""
    if hint is str:
        return NAMES
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = get_type_hints(hint)
        return st.builds(hint, **{name: values_of(hints[name]) for name in hint.__struct_fields__})
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if parts[-1] is Ellipsis:
            return st.lists(values_of(parts[0]), max_size=2).map(tuple)
        return st.tuples(*map(values_of, parts))
    return st.from_type(hint)


EVENTS = st.lists(st.sampled_from(EVENT_TYPES).flatmap(values_of), min_size=1, max_size=8)


@given(EVENTS)
def test_events_speak_of_what_the_index_has_them_under(events):
    """The short ways to say it, for each type, against the keys that a writer takes from the JSON."""
    bodies = [msgspec.json.encode(event) for event in events]
    told = index_lines(
        [INDEX_KEYS[type(e)] for e in events], events, [e.entity for e in events], b"\n".join(bodies)
    )
    said = [
        index_line(subject_of(CLUSTER, event.aggregate, event.entity, event.verb), body)
        for event, body in zip(events, bodies, strict=True)
    ]
    assert told == "".join(said)


@pytest.mark.parametrize("cls", EVENT_TYPES, ids=lambda cls: cls.type_name())
@given(data=st.data())
def test_no_type_speaks_of_anything_else(cls, data):
    event = data.draw(values_of(cls))
    keys = keys_in(subject_of(CLUSTER, event.aggregate, event.entity, event.verb), msgspec.json.encode(event))
    assert sorted(keys_of_event(event)) == sorted(keys)
