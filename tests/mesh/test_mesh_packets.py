"""The door of the mesh: what strangers, replays and wrong sizes can do, and what an answer costs."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.health.probe_device import packed
from nodeagent.membership.peers import Peer
from nodeagent.mesh import packets, prober
from nodeagent.mesh.book import Ask
from nodeagent.mesh.prober import MeshProber

OWN, PEER, STRANGER = "10.0.0.31", "10.0.0.63", "10.0.9.63"
TOKEN = b"12345678"


class Device:
    address, is_open = OWN, True

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, packet: bytes) -> None:
        self.sent.append(packet)


class View:
    """One peer, as the prober looks at it."""

    sequence = 9
    members: ClassVar[dict[str, Any]] = {}
    own = Peer("n0", "uid-0", 3, "10.0.0.0/27", "66:00:00:00:00:01", "192.0.2.1")
    peers = (Peer("n1", "uid-1", 5, "10.0.0.32/27", "66:00:00:00:00:02", "192.0.2.2"),)


@pytest.fixture
def mesh() -> MeshProber:
    path: Any = SimpleNamespace(device=Device(), unable="", mesh=None)
    made = MeshProber(path, context=lambda: None, narrow=dict)
    made._follow(View())  # type: ignore[arg-type]
    return made


def sent(mesh: MeshProber) -> list[bytes]:
    return mesh._path.device.sent  # type: ignore[union-attr, attr-defined]


def packet(source: str, kind: int = packets.QUESTION, word: bytes = packets.NO_WORD, **size: Any) -> bytes:
    return packets.message(packed(source), packed(OWN), kind, TOKEN, word, **size)


def heard(mesh: MeshProber) -> bool:
    return mesh.book.seen(5, prober.time.monotonic()).heard_s >= 0


def test_a_member_gets_one_answer_of_the_size_of_its_question(mesh: MeshProber) -> None:
    for question in (packet(PEER), packet(PEER, large=True, size=1400)):
        assert mesh.received(question)
        (answer,) = sent(mesh)
        assert len(answer) == len(question)
        found = packets.understand(answer, packed(PEER))
        assert found is not None
        assert (found.kind, found.token, found.sender) == (packets.ANSWER, TOKEN, packed(OWN))
        sent(mesh).clear()


def test_a_stranger_gets_nothing_and_changes_nothing(mesh: MeshProber) -> None:
    assert mesh.received(packet(STRANGER))
    assert mesh.received(packet(STRANGER, packets.ANSWER))
    assert sent(mesh) == []
    assert mesh.book.counts() == (0, 0)


def test_answers_are_limited_however_many_ask(mesh: MeshProber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober.time, "monotonic", lambda: 1000.0)
    for _ in range(1000):
        mesh.received(packet(PEER))
    assert len(sent(mesh)) == prober.REPLIES_PER_S


def test_an_answer_that_nobody_waits_for_changes_nothing(mesh: MeshProber) -> None:
    mesh.received(packet(PEER, packets.ANSWER))
    assert mesh.book.counts() == (0, 0)
    assert mesh._words == {}


def test_an_answer_counts_once_and_only_of_whom_was_asked(mesh: MeshProber) -> None:
    mesh.book.asking(Ask(5, "small"), TOKEN, prober.time.monotonic())
    mesh.received(packet(STRANGER, packets.ANSWER))
    assert mesh.book.counts() == (0, 0)
    for _ in range(3):
        mesh.received(packet(PEER, packets.ANSWER, b"the word"))
    assert mesh.book.counts() == (1, 0)
    assert mesh.book.counted["answered"] == 1
    assert mesh._words == {5: b"the word"}


def test_only_a_question_with_the_right_word_counts_as_heard(mesh: MeshProber) -> None:
    mesh.received(packet(PEER))
    mesh.received(packet(PEER, word=b"a guess!"))
    assert not heard(mesh)
    answer = packets.understand(sent(mesh)[0], packed(PEER))
    assert answer is not None
    mesh.received(packet(PEER, word=answer.word))
    assert heard(mesh)


def test_the_word_is_of_one_node_one_address_and_one_epoch() -> None:
    words = {
        packets.word_for(secret, packed(address), epoch)
        for secret in (b"a" * 32, b"b" * 32)
        for address in (PEER, STRANGER)
        for epoch in (5, 6)
    }
    assert len(words) == 8


@given(st.binary(max_size=120))
def test_no_bytes_harm_the_door(noise: bytes) -> None:
    assert packets.understand(noise, packed(OWN)) is None
    whole = packet(PEER)
    cut = whole[: len(noise) % len(whole)]
    assert packets.understand(cut, packed(OWN)) is None


@given(st.integers(0, packets.SMALLEST - 1), st.integers(1, 255))
def test_a_changed_header_is_understood_as_what_it_says_or_not_at_all(at: int, change: int) -> None:
    whole = bytearray(packet(PEER))
    whole[at] ^= change
    found = packets.understand(bytes(whole), packed(OWN))
    if found is not None:
        assert found.kind in {packets.QUESTION, packets.ANSWER}
        assert found.size == len(whole)
        assert found.sender == bytes(whole[12:16])


def test_a_large_question_is_never_cut_on_its_way() -> None:
    large = packet(PEER, large=True, size=1450)
    assert len(large) == 1450
    assert int.from_bytes(large[6:8], "big") == packets.DF
    assert socket.inet_ntoa(large[12:16]) == str(IPv4Address(PEER))


def test_churn_in_a_large_cluster_costs_a_small_share(
    mesh: MeshProber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event changes the view; a look at all members, slow as it may be, is not taken for each."""
    clock = [mesh._follow_from + 1]
    looked = []

    def follow(_epochs: Any) -> None:
        looked.append(clock[0])
        clock[0] += 0.1

    monkeypatch.setattr(prober.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(mesh.book, "follow", follow)
    view = View()
    for sequence in range(10, 1010):
        view.sequence = sequence
        mesh._follow(view)  # type: ignore[arg-type]
        clock[0] += 0.01
    assert 2 <= len(looked) <= 4
