"""Verification: a sound log passes everything; tampering in any form is found and located."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.controller.publishing.checkpoints import (
    SigningKey,
    append_checkpoints,
    check_signature,
    load_public_key,
    read_checkpoints,
)
from events.chain import CHAIN_HEADER, CHAINED_HEADERS, genesis, link
from events.codec import Cause, StoredMessage, decode, seal
from events.envelope import from_headers
from events.errors import IsthmusError, VerificationFailed
from events.ids import event_id
from events.types import NodeLeft, RangeAllocated
from replay.archive import lines
from replay.verification import verify as verifying
from replay.verification.full_check import check_lines
from replay.verification.report import html
from tests.replay.altered_logs import (
    MESSAGES,
    altered,
    digest_at,
    errors,
    judge,
    judge_file,
    rechained,
    short_segments,
    write,
)
from tests.replay.histories import CLUSTER, ListLog

KEY = SigningKey.generate()


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    short_segments(monkeypatch)


# --- sound -----------------------------------------------------------------------------------------


def test_a_sound_log_passes_every_check(tmp_path):
    path = write(tmp_path / "log", MESSAGES)
    for report in (judge(MESSAGES), judge_file(path)):
        assert report.sound
        assert report.findings == []
        assert all(check.passed for check in report.checks)
        assert report.events == len(MESSAGES)
        assert report.head == MESSAGES[-1].headers[CHAIN_HEADER]
        assert report.state_digest == digest_at(len(MESSAGES))


def test_worker_processes_come_to_the_same_judgement(tmp_path, monkeypatch):
    broken = altered(MESSAGES, 70, body=MESSAGES[69].body.replace(b"}", b" }"))
    path = write(tmp_path / "log", broken)
    here = judge_file(path)
    monkeypatch.setattr(verifying, "INLINE_EVENTS", 0)
    there = judge_file(path, jobs=2)
    assert there.findings == here.findings
    assert [msgspec.structs.replace(check) for check in there.checks] == here.checks
    assert errors(there) == {("chain_broken", 70)}


@settings(max_examples=30)
@given(st.integers(1, len(MESSAGES)), st.integers(1, 40))
def test_the_fast_hash_is_the_specified_hash(first, count):
    part = MESSAGES[first - 1 : first - 1 + count]
    before = bytes.fromhex(MESSAGES[first - 2].headers[CHAIN_HEADER]) if first > 1 else genesis(CLUSTER).digest
    result = check_lines(lines.encode_messages(part), CLUSTER, before, first - 1)
    digest = before
    for message in part:
        digest = link(digest, message.sequence, message.subject, message.headers, message.body)
    assert result.digest == digest
    assert result.findings == []


def test_the_line_header_order_is_the_hashing_order():
    assert CHAINED_HEADERS[:12] == (
        "ce-specversion",
        "ce-id",
        "ce-type",
        "ce-source",
        "ce-time",
        "ce-datacontenttype",
        "ce-actor",
        "ce-commandid",
        "ce-correlationid",
        "ce-causationid",
        "ce-txindex",
        "ce-txcount",
    )


# --- tampered ---------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, len(MESSAGES)), st.data())
def test_any_changed_byte_of_a_body_is_found_at_its_event(at, data):
    body = bytearray(MESSAGES[at - 1].body)
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    report = judge(altered(MESSAGES, at, body=bytes(body)))
    assert ("chain_broken", at) in errors(report)


@settings(max_examples=40)
@given(st.integers(1, len(MESSAGES)), st.sampled_from([*CHAINED_HEADERS, CHAIN_HEADER]))
def test_any_changed_header_is_found_at_its_event(at, name):
    headers = dict(MESSAGES[at - 1].headers)
    headers[name] = headers.get(name, "") + "x"
    report = judge(altered(MESSAGES, at, headers=headers))
    found = errors(report)
    # A changed digest breaks its own event and the one that follows from it.
    assert ("chain_broken", at) in found
    assert {sequence for code, sequence in found if code == "chain_broken"} <= {at, at + 1}


def test_a_changed_subject_is_found():
    subject = MESSAGES[49].subject.replace("isthmus.past", "isthmus.paste")
    assert ("chain_broken", 50) in errors(judge(altered(MESSAGES, 50, subject=subject)))


@settings(max_examples=25)
@given(st.integers(2, len(MESSAGES) - 1))
def test_a_deletion_is_found_where_the_event_is_missing(at):
    report = judge([m for m in MESSAGES if m.sequence != at])
    assert ("sequence_gap", at) in errors(report)


@settings(max_examples=25)
@given(st.integers(1, len(MESSAGES) - 1))
def test_a_swap_is_found_at_both_events(at):
    swapped = list(MESSAGES)
    a, b = swapped[at - 1], swapped[at]
    swapped[at - 1], swapped[at] = a._replace(sequence=at + 1), b._replace(sequence=at)
    swapped[at - 1], swapped[at] = swapped[at]._replace(), swapped[at - 1]._replace()
    found = errors(judge(swapped))
    assert {("chain_broken", at), ("chain_broken", at + 1)} <= found


def test_an_inserted_event_is_found():
    forged = MESSAGES[79]._replace(sequence=81)
    moved = [m._replace(sequence=m.sequence + 1) for m in MESSAGES[80:]]
    found = errors(judge([*MESSAGES[:80], forged, *moved]))
    assert ("chain_broken", 81) in found


def test_a_forged_append_without_the_chain_is_found():
    headers = {k: v for k, v in MESSAGES[-1].headers.items() if k != CHAIN_HEADER}
    forged = MESSAGES[-1]._replace(sequence=len(MESSAGES) + 1, headers={**headers, CHAIN_HEADER: ""})
    assert ("chain_broken", len(MESSAGES) + 1) in errors(judge([*MESSAGES, forged]))


def test_a_forged_append_with_a_proper_chain_is_found_by_what_it_says():
    """Whoever can write can also hash; the fold and the invariants still object."""
    head = asyncio.run(ListLog(MESSAGES).head())
    cause = Cause(command_id="forged", actor="ops@evil", time=datetime.now(UTC), source="x")
    held = next(decode(m).event for m in reversed(MESSAGES) if isinstance(decode(m).event, RangeAllocated))
    again = RangeAllocated(cidr=held.cidr, index=held.index, node="evil", uid="evil", cursor_after=0)
    sealed, _ = seal(CLUSTER, head, [(cause, [again])])
    forged = StoredMessage(head.sequence + 1, sealed[0].subject, sealed[0].headers, sealed[0].body, 2 * 10**18)
    report = judge([*MESSAGES, forged])
    assert ("invariant_violated", head.sequence + 1) in errors(report)


def test_a_history_rewritten_with_a_proper_chain_is_found_by_a_checkpoint_and_located():
    events = [decode(m).event for m in MESSAGES]
    at = next(i for i, e in enumerate(events, 1) if isinstance(e, NodeLeft) and i > 60)
    body = msgspec.json.encode(msgspec.structs.replace(events[at - 1], reason="somebody else did it"))
    rewritten = rechained(altered(MESSAGES, at, body=body), at)
    assert judge(rewritten).sound, "the chain alone cannot tell"
    checkpoints = tuple(signed(sequence) for sequence in (50, at + 3, at + 40))
    report = judge(rewritten, checkpoints=checkpoints, public_keys=(KEY.public_hex,))
    assert {("checkpoint_mismatch", at + 3), ("checkpoint_mismatch", at + 40)} <= errors(report)
    first = next(f for f in report.findings if f.sequence == at + 3 and f.code == "checkpoint_mismatch")
    assert f"between events 51 and {at + 3}" in first.message


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_a_truncation_is_found_by_whoever_knew_a_later_event(tmp_path, cut):
    short = MESSAGES[:-cut]
    last = len(MESSAGES)
    known = ("the auditor's note", last, MESSAGES[-1].headers[CHAIN_HEADER])
    report = judge(short, heads=(known,))
    assert ("log_truncated", last - cut + 1) in errors(report)
    assert f"at least {cut} events" in next(f.message for f in report.findings if "auditor" in f.message)
    report = judge(short, checkpoints=(signed(last),))
    assert ("log_truncated", last - cut + 1) in errors(report)


def test_a_truncation_inside_a_command_is_found_without_any_help():
    at = next(m.sequence for m in MESSAGES if m.headers["ce-txindex"] == "0" and m.headers["ce-txcount"] == "2")
    assert ("log_truncated", at) in errors(judge(MESSAGES[:at]))


def test_a_command_that_took_effect_twice_is_found():
    """Its events again at the end, properly chained."""
    again = [m for m in MESSAGES if m.headers["ce-commandid"] == "command-1"]
    offset = len(MESSAGES)
    doubled = [*MESSAGES, *(m._replace(sequence=offset + i) for i, m in enumerate(again, 1))]
    report = judge(rechained(doubled, offset + 1))
    assert any("second effect" in finding.message for finding in report.findings)


def test_an_id_that_does_not_follow_from_its_command_is_found():
    headers = {**MESSAGES[99].headers, "ce-id": event_id("another", 0), "Nats-Msg-Id": event_id("another", 0)}
    report = judge(rechained(altered(MESSAGES, 100, headers=headers), 100))
    assert ("event_malformed", 100) in errors(report)


def test_a_message_id_that_is_not_the_events_is_found():
    """The one header that the chain does not cover."""
    headers = {**MESSAGES[99].headers, "Nats-Msg-Id": "something-else"}
    assert errors(judge(altered(MESSAGES, 100, headers=headers))) == {("event_malformed", 100)}


def test_an_unknown_type_and_a_malformed_body_are_found_and_stop_the_fold_only():
    headers = {**MESSAGES[99].headers, "ce-type": "node.joined.v9"}
    report = judge(rechained(altered(MESSAGES, 100, headers=headers), 100))
    assert ("event_unknown", 100) in errors(report)
    chain = next(check for check in report.checks if check.name == "chain")
    assert chain.passed
    assert chain.looked_at == len(MESSAGES)
    invariants = next(check for check in report.checks if check.name == "invariants")
    assert not invariants.done
    assert report.state_digest == ""
    body = b'{"index": "many"}'
    report = judge(rechained(altered(MESSAGES, 100, body=body), 100))
    assert ("event_malformed", 100) in errors(report)


def test_a_range_freed_before_its_rest_is_over_is_found():
    freed = next(m for m in MESSAGES if m.headers["ce-type"] == "range.freed.v1")
    early = from_headers(freed.headers, 0).time - timedelta(seconds=60)
    headers = {**freed.headers, "ce-time": early.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    report = judge(rechained(altered(MESSAGES, freed.sequence, headers=headers), freed.sequence))
    assert ("invariant_violated", freed.sequence) in errors(report)


def test_another_state_digest_of_controller_or_read_model_is_found():
    report = judge(
        MESSAGES, states=(("the live controller", 90, digest_at(90)), ("the read model", 100, "0" * 64))
    )
    assert errors(report) == {("digest_mismatch", 100)}
    assert next(check.looked_at for check in report.checks if check.name == "states") == 2


# --- checkpoints ----------------------------------------------------------------------------------------


def signed(sequence: int, key: SigningKey = KEY):
    return key.checkpoint(
        cluster=CLUSTER,
        sequence=sequence,
        chain=MESSAGES[sequence - 1].headers[CHAIN_HEADER],
        state=digest_at(sequence),
        time=datetime(2026, 3, 2, 9, tzinfo=UTC),
    )


def test_checkpoints_of_a_sound_log_are_confirmed_offline(tmp_path):
    append_checkpoints(tmp_path / "c.jsonl", [signed(10)])
    append_checkpoints(tmp_path / "c.jsonl", [signed(100)])
    (tmp_path / "key.pub").write_bytes(KEY.public_pem())
    key = load_public_key(str(tmp_path / "key.pub"))
    assert key == load_public_key(KEY.public_hex)
    report = judge(MESSAGES, checkpoints=tuple(read_checkpoints(tmp_path / "c.jsonl")), public_keys=(key,))
    assert report.sound
    assert next(check.looked_at for check in report.checks if check.name == "checkpoints") == 2
    assert next(check.looked_at for check in report.checks if check.name == "states") == 2


CHANGES: list[Callable[..., object]] = [
    lambda c: msgspec.structs.replace(c, sequence=c.sequence + 1),
    lambda c: msgspec.structs.replace(c, chain="0" * 64),
    lambda c: msgspec.structs.replace(c, state="0" * 64),
    lambda c: msgspec.structs.replace(c, cluster="other"),
    lambda c: msgspec.structs.replace(c, time=c.time + timedelta(seconds=1)),
    lambda c: msgspec.structs.replace(c, signature="00" * 64),
    lambda c: msgspec.structs.replace(c, signature="nonsense"),
    lambda c: signed(c.sequence, SigningKey.generate()),
]


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_an_altered_checkpoint_or_one_of_another_key_is_refused(change):
    with pytest.raises(VerificationFailed) as refused:
        check_signature(CHANGES[change](signed(40)), CLUSTER, KEY.public_hex)
    assert refused.value.code == "checkpoint_mismatch"


def test_a_key_file_is_private_made_once_and_read_again(tmp_path):
    first = SigningKey.load_or_generate(tmp_path / "keys" / "checkpoint.pem")
    assert SigningKey.load_or_generate(tmp_path / "keys" / "checkpoint.pem").public_hex == first.public_hex
    assert (tmp_path / "keys" / "checkpoint.pem").stat().st_mode & 0o777 == 0o600
    assert load_public_key(str(tmp_path / "keys" / "checkpoint.pem.pub")) == first.public_hex
    with pytest.raises(IsthmusError):
        SigningKey.load(tmp_path / "keys" / "checkpoint.pem.pub")


def test_a_torn_last_line_of_checkpoints_is_dropped_and_healed(tmp_path):
    file = tmp_path / "c.jsonl"
    append_checkpoints(file, [signed(10), signed(20)])
    file.write_bytes(file.read_bytes()[:-30])
    assert [c.sequence for c in read_checkpoints(file)] == [10]
    append_checkpoints(file, [signed(30)])
    assert [c.sequence for c in read_checkpoints(file)] == [10, 30]


# --- the report -------------------------------------------------------------------------------------------


def test_the_report_is_one_printable_file_without_outside_references():
    broken = judge(altered(MESSAGES, 50, body=b'{"x": "<script>alert(1)</script>"}'))
    for report, verdict in ((judge(MESSAGES), "SOUND"), (broken, "NOT SOUND")):
        text = html(report, UTC)
        assert verdict in text
        assert report.head in text
        assert "+00:00" in text
        assert "@media print" in text
        for outside in ("http:", "https:", "src=", "@import", "url("):
            assert outside not in text
        assert "<script" not in text
    assert "chain_broken" in html(broken, UTC)


def test_the_report_is_plain_json_too():
    report = json.loads(msgspec.json.encode(judge(MESSAGES)))
    assert report["errors"] == 0
    assert {check["name"] for check in report["checks"]} >= {"chain", "gap", "schema", "invariants"}


# --- evidence that was asked for ---------------------------------------------------------------------


def test_a_key_that_vouches_for_nothing_here_is_missing_evidence() -> None:
    """A rewritten log without its checkpoints is, by itself, without a flaw."""
    report = judge(MESSAGES, public_keys=(KEY.public_hex,))
    assert errors(report) == {("evidence_missing", 0)}
    assert not report.sound
    assert judge(MESSAGES, checkpoints=(signed(len(MESSAGES)),), public_keys=(KEY.public_hex,)).sound


def test_an_archive_stripped_of_its_checkpoints_is_not_sound(tmp_path) -> None:
    path = write(tmp_path / "log", MESSAGES)
    assert judge_file(path).sound, "nobody asked for evidence"
    assert ("evidence_missing", 0) in errors(judge_file(path, public_keys=(KEY.public_hex,)))


def test_two_controllers_keys_prove_what_one_of_them_cannot() -> None:
    other = SigningKey.generate()
    theirs = signed(60, key=other)
    both = (signed(50), theirs, signed(len(MESSAGES)))
    report = judge(MESSAGES, checkpoints=both, public_keys=(KEY.public_hex, other.public_hex))
    assert report.sound
    assert any(f"up to {len(MESSAGES):,}" in check.detail for check in report.checks)
    alone = judge(MESSAGES, checkpoints=both, public_keys=(KEY.public_hex,))
    assert errors(alone) == {("checkpoint_mismatch", 60)}
    assert any("--public-key once more" in finding.message for finding in alone.findings)
    strange = judge(MESSAGES, checkpoints=both[:1], public_keys=(KEY.public_hex, other.public_hex))
    assert errors(strange) == {("evidence_missing", 0)}
