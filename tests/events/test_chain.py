"""The hash chain: whatever is changed, removed, reordered or inserted is found at its sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.chain import CHAIN_HEADER, CHAINED_HEADERS, Linker, genesis, link, verify_link
from events.codec import Cause, StoredMessage, seal
from events.errors import VerificationFailed
from events.memory import MemoryLog
from tests.contract.samples import CLUSTER, MOMENT, event, everything, fill, verified


async def stored(count: int = 6) -> list[StoredMessage]:
    log = MemoryLog(CLUSTER)
    await fill(log, count)
    return await everything(log)


def broken_at(messages: list[StoredMessage]) -> tuple[int, str]:
    with pytest.raises(VerificationFailed) as alarm:
        verified(messages)
    return alarm.value.details.get("sequence", alarm.value.details.get("expected")), alarm.value.code


async def test_an_untouched_log_verifies() -> None:
    assert verified(await stored()).sequence == 6


@pytest.mark.parametrize("name", CHAINED_HEADERS)
async def test_a_changed_identity_header_breaks_it_there(name: str) -> None:
    messages = await stored()
    headers = {**messages[2].headers, name: messages[2].headers.get(name, "") + "x"}
    messages[2] = messages[2]._replace(headers=headers)
    assert broken_at(messages) == (3, "chain_broken")


async def test_a_changed_body_or_subject_breaks_it_there() -> None:
    messages = await stored()
    for change in ({"body": messages[3].body + b" "}, {"subject": messages[3].subject + "x"}):
        assert broken_at([*messages[:3], messages[3]._replace(**change), *messages[4:]]) == (4, "chain_broken")


async def test_a_missing_event_is_a_gap_and_renumbering_does_not_hide_it() -> None:
    messages = await stored()
    del messages[2]
    assert broken_at(messages) == (3, "sequence_gap")
    renumbered = [message._replace(sequence=n) for n, message in enumerate(messages, 1)]
    assert broken_at(renumbered) == (3, "chain_broken")


async def test_swapped_events_are_found() -> None:
    messages = await stored()
    second, third = messages[1]._replace(sequence=3), messages[2]._replace(sequence=2)
    assert broken_at([messages[0], third, second, *messages[3:]]) == (2, "chain_broken")


async def test_an_event_without_a_digest_is_found() -> None:
    messages = await stored()
    bare = {name: value for name, value in messages[0].headers.items() if name != CHAIN_HEADER}
    assert broken_at([messages[0]._replace(headers=bare)]) == (1, "chain_broken")


async def test_what_servers_and_mirrors_add_or_strip_does_not_matter() -> None:
    messages = await stored()
    touched = [
        message._replace(headers={**message.headers, "Nats-Batch-Id": "b", "Nats-Expected-Last-Sequence": "9"})
        for message in messages
    ]
    assert verified(touched) == verified(messages)


async def test_the_log_of_another_cluster_does_not_pass_for_this_one() -> None:
    messages = await stored()
    first = messages[0]
    with pytest.raises(VerificationFailed):
        verify_link(genesis("other"), 1, first.subject, first.headers, first.body)


def test_a_line_break_in_a_header_cannot_pass_for_two_headers() -> None:
    with pytest.raises(VerificationFailed):
        link(bytes(32), 1, "s", {"ce-id": "a\nb"}, b"")


@given(
    st.tuples(st.text(st.characters(codec="ascii", exclude_characters="\n\r")), st.binary()),
    st.tuples(st.text(st.characters(codec="ascii", exclude_characters="\n\r")), st.binary()),
)
def test_different_contents_have_different_digests(left: tuple[str, bytes], right: tuple[str, bytes]) -> None:
    digests = [link(bytes(32), 1, "s", {"ce-id": name}, body) for name, body in (left, right)]
    assert (digests[0] == digests[1]) == (left == right)


def test_the_digest_is_pinned() -> None:
    """A change here would make every log written so far unverifiable."""
    headers = {"ce-id": "i", "ce-type": "node.joined.v1", "ce-actor": "a", "unchained": "x"}
    assert genesis("prod").hex == "8b800e0d114eea868dfef5dc40aa14d6d4a66e757082c38001b50855d4b06a50"
    assert link(genesis("prod").digest, 1, "isthmus.prod.events.node.a.joined", headers, b"{}").hex() == (
        "a480d64d17617ae2a2a32881576bf2b380cc31eac49277317252cd7211c2df26"
    )


async def test_linking_a_transaction_at_once_is_linking_its_events() -> None:
    whole = Cause(
        command_id="c", actor="a", time=MOMENT, source="s", correlation_id="r", causation_id="b",
        traceparent="p", tracestate="t",
    )  # fmt: skip
    bare = Cause(command_id="d", actor="", time=MOMENT, source="")
    head = genesis(CLUSTER)
    messages, last = seal(CLUSTER, head, [(whole, [event(1), event(2)]), (bare, [event(3)])])
    for sequence, message in enumerate(messages, 1):
        head = verify_link(head, sequence, message.subject, message.headers, message.body)
    assert head == last
    with pytest.raises(VerificationFailed):
        Linker("1.0", "two\nlines", "").link(head.digest, 7, "subject", "id", "type", 0, b"")
