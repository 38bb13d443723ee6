"""What comes from outside cannot act upon the terminal, the log file or the page on which it is shown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.controller.observability.span_intake import SpanIntake
from events import subjects
from events.cli.tables import fields_line, print_json, print_table
from events.envelope import from_headers
from events.errors import BadRequest
from events.printable import printable
from events.status import SEQUENCE_MAX, AgentStatus, checked
from events.telemetry.spans import SpanRecord, encode_spans

HOSTILE = "a\x1b[2J\x07\x9b31m\N{RIGHT-TO-LEFT OVERRIDE}b\N{ZERO WIDTH SPACE}\r\x00c\N{LINE SEPARATOR}d"


@given(st.text(), st.integers(2, 50))
def test_everything_becomes_printable_and_short(text: str, limit: int) -> None:
    assert printable(text, limit).isprintable()
    assert len(printable(text, limit)) <= limit


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_is_shown_cannot_rewrite_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name"], [[HOSTILE]], title="t")
    print_json({"name": HOSTILE})
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert json.loads(shown[shown.index("{") :])["name"] == HOSTILE  # JSON says the same, in escapes
    assert fields_line({"reason": HOSTILE, "inner": {"x": [HOSTILE]}}).isprintable()


def test_an_actor_that_an_earlier_release_stored_raw_is_read_printable() -> None:
    headers = {
        "ce-id": "i", "ce-type": "node.left.v1", "ce-source": "s", "ce-time": "2026-01-01T00:00:00Z",
        "ce-actor": "root%1B%5B2J%E2%80%AE", "ce-commandid": "c", "ce-txindex": "0", "ce-txcount": "1",
    }  # fmt: skip
    assert from_headers(headers, 1).actor.isprintable()


def test_spans_are_kept_printable_and_within_bounds() -> None:
    intake = SpanIntake(None, "t", None)  # type: ignore[arg-type]  # nothing is subscribed or stored here
    span = SpanRecord(
        trace_id="a" * 32, span_id="b" * 16, name=HOSTILE, service=HOSTILE, start_ns=1, end_ns=2, kind=HOSTILE,
        status=HOSTILE, message=HOSTILE,
        attributes={HOSTILE: [HOSTILE, 10**400], "n": 10**400, "m": {"x": HOSTILE}},
    )  # fmt: skip
    intake.take(subjects.spans("t", role="cli"), encode_spans([span]))
    [kept] = intake._waiting
    texts = [kept.name, kept.service, kept.kind, kept.status, kept.message, *kept.attributes]
    texts += [str(value) for value in kept.attributes.values()]
    assert all(text.isprintable() and len(text) < 400 for text in texts)


def test_a_node_that_sends_spans_without_end_is_named() -> None:
    said: list[tuple[str, str]] = []
    intake = SpanIntake(None, "t", None, exceeded=lambda *over: said.append(over))  # type: ignore[arg-type]
    span = SpanRecord(trace_id="a" * 32, span_id="b" * 16, name="n", service="s", start_ns=1, end_ns=2)
    intake.take(subjects.spans("t", "n1"), encode_spans([span] * 128))
    assert said == []
    for _ in range(40):
        intake.take(subjects.spans("t", "n1"), encode_spans([span] * 128))
    assert set(said) == {("n1", "spans")}


NUMBERS = st.one_of(st.integers(), st.just(10**400), st.just(-(10**400)), st.just(2**63), st.just(2**64))
REALS = st.one_of(st.floats(), st.integers(-(10**400), 10**400))


@given(
    st.fixed_dictionaries(
        {"applied": NUMBERS, "peers": NUMBERS, "epoch": NUMBERS, "interval_s": REALS},
        optional={
            "conditions": st.lists(st.text(max_size=900), max_size=40),
            "drift": st.lists(st.text()),
            "agent_version": st.text(),
            "kernel_digest": st.text(),
            "uid": st.text(),
        },
    )
)
def test_a_report_is_within_its_bounds_or_refused(fields: dict[str, Any]) -> None:
    said = {"node": "n1", "uid": "u", "sent_at": "2026-01-01T00:00:00Z", **fields}
    try:
        status = msgspec.json.decode(json.dumps(said).encode(), type=AgentStatus)
        kept = checked(status)
    except (msgspec.MsgspecError, BadRequest):
        return
    assert 0 <= kept.applied <= SEQUENCE_MAX
    assert 0 <= kept.peers <= SEQUENCE_MAX
    assert 0 < kept.interval_s <= 86_400
    texts = [kept.uid, kept.agent_version, kept.kernel_digest, *kept.conditions, *kept.drift]
    assert all(text.isprintable() and len(text) <= 400 for text in texts)
    assert max(len(kept.conditions), len(kept.drift)) <= 20


def test_a_list_that_holds_ranges_up_is_not_cut() -> None:
    ranges = tuple(f"10.{number // 256}.{number % 256}.0/26" for number in range(900))
    said = AgentStatus(node="n", uid="u", applied=1, sent_at=datetime.now(UTC), stray_ranges=ranges)
    assert checked(said).stray_ranges == ranges
