"""No input crashes, hangs or blows up a reader; what is wrong is refused with a typed error.

A fixed budget here; `make fuzz` goes on for as long as one likes, with coverage guidance.
"""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from events.protocol.commands import COMMANDS
from tests.fuzz.targets import BODIES, TARGETS, attempt

HANGS_S = 60
"""No input takes this long on any machine: what does has hung. Speeds are for the benchmarks."""
MEMORY_MAX_BYTES = 96 * 1024 * 1024


@contextmanager
def hanging_fails() -> Iterator[None]:
    """An alarm interrupts what does not come back, so that a hang is a failure with its stack."""

    def ring(number: int, frame: object) -> None:
        raise AssertionError(f"not back after {HANGS_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def damaged(draw: st.DrawFn, samples: tuple[bytes, ...]) -> bytes:
    """A valid input, cut, patched, repeated or with something put in."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["cut", "patch", "insert", "repeat", "flip"]))
        if kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "patch":
            data[at : at + 4] = draw(st.binary(max_size=4))
        elif kind == "insert":
            data[at:at] = draw(
                st.sampled_from([b"\x00", b"{", b"[" * 200, b'"', b"\n", b"\xff", b"9" * 30, b"-1", b"null"])
            )
        elif kind == "repeat":
            data[at:at] = data[: draw(st.integers(0, 256))]
        elif data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_samples_are_accepted(name: str) -> None:
    assert TARGETS[name].samples
    for sample in TARGETS[name].samples:
        assert TARGETS[name].run(sample), sample


def test_every_command_has_a_valid_sample() -> None:
    assert set(BODIES) == {command.name for command in COMMANDS}


@pytest.mark.parametrize("name", TARGETS)
def test_arbitrary_bytes(name: str) -> None:
    @settings(max_examples=150)
    @given(st.binary(max_size=600))
    @example(b"")
    @example(b"[" * 100_000)
    @example(b'{"a":' * 20_000)
    @example(b"\xff" * 1000)
    @example(b"9" * 50_000)
    def check(data: bytes) -> None:
        attempt(TARGETS[name], data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(name: str) -> None:
    @settings(max_examples=250)
    @given(damaged(TARGETS[name].samples + TARGETS[name].foreign))
    def check(data: bytes) -> None:
        with hanging_fails():
            attempt(TARGETS[name], data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_large_hostile_inputs_cost_bounded_memory_and_time(name: str) -> None:
    samples = TARGETS[name].samples
    inputs = [b"\x00" * (1 << 20), b"[" * (1 << 20), b'"' + b"\\u0041" * 150_000 + b'"', samples[0] * 400]
    for data in inputs:
        tracemalloc.start()
        try:
            with hanging_fails():
                attempt(TARGETS[name], data)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MEMORY_MAX_BYTES
