"""The bytes of what nodes behind NAT say to one another: read as sealed, and no others do harm."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.nat import packets
from nodeagent.nat.packets import BYTES, LASTS_MAX_MS, NUMBER_MAX, Endpoint, Message
from tests.nodeagent.nat_world import PORT, place

words = st.integers(0, 2**64 - 1)
four = st.binary(min_size=4, max_size=4)
endpoints = st.builds(Endpoint, four, st.integers(0, 65535))
sealed = st.builds(
    Message, st.integers(1, 4), words, words, four, st.integers(0, 32), st.integers(0, NUMBER_MAX), endpoints,
    st.booleans(), st.binary(min_size=16, max_size=16), st.integers(0, LASTS_MAX_MS),
)  # fmt: skip


@given(sealed, st.binary(min_size=32, max_size=32), st.integers(0, BYTES * 8 - 1))
def test_a_message_reads_as_it_was_sealed_and_not_with_any_bit_changed(
    message: Message, key: bytes, bit: int
) -> None:
    content = packets.seal(message, key)
    assert len(content) == BYTES
    assert packets.read(content) == message
    assert packets.is_sealed(content, key)
    changed = (int.from_bytes(content, "big") ^ 1 << bit).to_bytes(BYTES, "big")
    assert not packets.is_sealed(changed, key)


@given(st.binary(max_size=200))
def test_no_bytes_from_outside_do_harm(content: bytes) -> None:
    packets.read(content)
    packets.opened(content)
    packets.opened(packets.datagram(content, b"\x0a\0\0\1", place("10.0.0.2", 99), PORT))


@given(st.binary(max_size=90), st.integers(1, 65535))
def test_a_datagram_opens_as_it_was_sent(content: bytes, port: int) -> None:
    packet = packets.datagram(content, socket.inet_aton("10.0.0.1"), place("10.0.0.2", port), PORT)
    assert packets.opened(packet) == (socket.inet_aton("10.0.0.2"), place("10.0.0.1"), content)
    addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    udp = addresses + bytes([0, 17]) + packet[24:26] + packet[20:]
    padded = udp + bytes(len(udp) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    assert total % 0xFFFF == 0, "a checksum that routers may adjust"
