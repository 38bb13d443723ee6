"""Events and their stored form: nothing is lost, old and unknown forms are decisions, ids are stable."""

from __future__ import annotations

import types
import typing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import subjects
from events.bus.headers import parse_header_lines
from events.chain import CHAIN_HEADER, genesis
from events.codec import Cause, StoredMessage, UnknownEvent, decode, decode_event, envelope_of, seal
from events.envelope import format_time, from_headers
from events.errors import BadRequest, VerificationFailed
from events.ids import event_id, new_id
from events.printable import printable
from events.types import EVENT_TYPES, Event
from tests.contract.samples import CLUSTER, MOMENT, cause, event, sealed


def sample(kind: Any) -> Any:
    """Some value of an annotated type, without defaults, so that every field is written."""
    origin = get_origin(kind)
    if kind is datetime:
        return MOMENT
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind(
            **{name: sample(hint) for name, hint in typing.get_type_hints(kind).items() if not _class(hint)}
        )
    if origin is Literal:
        return get_args(kind)[-1]
    if origin in {types.UnionType, typing.Union}:
        return sample(next(part for part in get_args(kind) if part is not type(None)))
    if origin is tuple:
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        return tuple(sample(part) for part in (parts if len(parts) > 1 else parts * 2))
    if origin is dict:
        return {sample(get_args(kind)[0]): sample(get_args(kind)[1])}
    return {str: "text", int: 7, float: 1.5, bool: True}[kind]


def _class(hint: Any) -> bool:
    return get_origin(hint) is typing.ClassVar


@pytest.mark.parametrize("cls", EVENT_TYPES, ids=lambda cls: cls.type_name())
def test_every_event_comes_back_as_it_was_written(cls: type[Event]) -> None:
    written = sample(cls)
    messages, head = seal(CLUSTER, genesis(CLUSTER), [(cause("c"), [written])])
    message = messages[0]
    read = decode(StoredMessage(1, message.subject, message.headers, message.body, 1_700_000_000_000_000_000))
    assert read.event == written
    assert read.envelope.type == cls.type_name()
    assert read.envelope.chain == head.hex == message.headers[CHAIN_HEADER]
    assert message.subject.startswith(f"isthmus.{CLUSTER}.events.{cls.aggregate}.")
    assert message.subject.count(".") == 5


def test_the_names_of_the_events_are_unique_and_in_the_past() -> None:
    names = [cls.type_name() for cls in EVENT_TYPES]
    assert len(set(names)) == len(names)
    assert all(name.endswith(".v1") for name in names)


def test_an_unknown_type_is_no_crash_and_keeps_its_body() -> None:
    read = decode_event("node.teleported.v9", b'{"x":1}', 4)
    assert isinstance(read, UnknownEvent)
    assert (read.type, read.body) == ("node.teleported.v9", b'{"x":1}')


def test_a_field_that_a_newer_release_added_is_skipped() -> None:
    body = msgspec.json.encode({**msgspec.to_builtins(event(3)), "from_the_future": [1]})
    assert decode_event("range.allocated.v1", body, 4) == event(3)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"cidr":1}', b"\xff"])
def test_a_body_that_does_not_fit_is_named_with_its_sequence(body: bytes) -> None:
    with pytest.raises(VerificationFailed, match="event 9") as alarm:
        decode_event("range.allocated.v1", body, 9)
    assert alarm.value.code == "event_malformed"


@pytest.mark.parametrize("name", ["ce-id", "ce-type", "ce-time", "ce-txindex", "ce-actor", "ce-commandid"])
def test_a_missing_header_is_named_with_its_sequence(name: str) -> None:
    headers = sealed(genesis(CLUSTER), 1)[0][0].headers
    del headers[name]
    with pytest.raises(VerificationFailed, match="event 5"):
        from_headers(headers, 5)


def test_the_events_of_a_command_have_the_same_ids_each_time_and_know_their_place() -> None:
    first, _ = sealed(genesis(CLUSTER), 3)
    again, _ = sealed(genesis(CLUSTER), 3)
    assert [message.id for message in first] == [message.id for message in again]
    assert len({message.id for message in first}) == 3
    places = [from_headers(message.headers, 1) for message in first]
    assert [(place.tx_index, place.tx_count) for place in places] == [(0, 3), (1, 3), (2, 3)]
    assert all(message.headers["Nats-Msg-Id"] == message.id for message in first)


text = st.text(max_size=40)


@given(actor=text, source=text, command=text, causation=text, tracestate=text)
def test_any_text_survives_the_headers_as_printable_ascii(
    actor: str, source: str, command: str, causation: str, tracestate: str
) -> None:
    made = Cause(
        command_id=command,
        actor=actor,
        time=MOMENT,
        source=source,
        causation_id=causation,
        tracestate=tracestate,
    )
    message = seal(CLUSTER, genesis(CLUSTER), [(made, [event(1)])])[0][0]
    headers = message.headers
    assert parse_header_lines(message.lines.encode("ascii")) == headers
    assert all(value.isascii() and (value.isprintable() or not value) for value in headers.values())
    read = from_headers(headers, 1)
    assert read == envelope_of(made, message, 0, 1) or not all(
        value.isascii() and value.isprintable() and value == printable(value)
        for value in (actor, source, command, causation, tracestate)
    )
    assert (read.actor, read.source, read.command_id) == (printable(actor), printable(source), command)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_has_one_spelling_whatever_its_zone(moment: datetime) -> None:
    if moment.year < 1000 or moment.year > 9998:
        return  # strftime does not pad earlier years
    elsewhere = moment.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert format_time(moment) == format_time(elsewhere)
    assert datetime.fromisoformat(format_time(moment)) == moment


def test_ids_are_sorted_by_time_and_derived_ones_are_stable() -> None:
    made = [new_id() for _ in range(50)]
    assert len(set(made)) == 50
    assert all(each[14] == "7" for each in made)
    assert event_id("command", 0) == "2975592d-4962-5458-b36d-cc134296314c"
    assert event_id("command", 0) != event_id("command", 1)


label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@given(st.lists(label, min_size=1, max_size=4).map(".".join))
def test_a_node_name_is_one_token_and_comes_back(name: str) -> None:
    token = subjects.token(subjects.check_node_name(name))
    assert "." not in token
    assert subjects.node_from_token(token) == name


@given(st.ip_addresses(v=4), st.integers(8, 30))
def test_a_range_is_one_token_and_comes_back(address: object, prefix: int) -> None:
    token = subjects.token(f"{address}/{prefix}")
    assert not set(token) & set("./*> ")
    assert token.replace("_", ".").replace("-", "/") == f"{address}/{prefix}"


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a b", "a*", "a>", "x" * 254])
def test_a_name_that_could_reach_other_subjects_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        subjects.check_node_name(name)


def test_a_cause_needs_no_trace() -> None:
    made = Cause(command_id="c", actor="a", time=MOMENT, source="s")
    messages, _ = seal(CLUSTER, genesis(CLUSTER), [(made, [event(1)])])
    assert "traceparent" not in messages[0].headers
