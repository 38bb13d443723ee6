"""No input crashes, hangs or blows up a reader; what is wrong is refused with a typed error.

A fixed budget here; `make fuzz` goes on for as long as one likes, with coverage guidance.
"""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, attempt

SLOWEST_S = 2.0
MEMORY_MAX_BYTES = 96 * 1024 * 1024


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
    for sample in TARGETS[name].samples:
        if name != "command":  # every body is tried on every subject there
            TARGETS[name].run(sample)


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
    @given(damaged(TARGETS[name].samples))
    def check(data: bytes) -> None:
        began = time.monotonic()
        attempt(TARGETS[name], data)
        assert time.monotonic() - began < SLOWEST_S

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_large_hostile_inputs_cost_bounded_memory_and_time(name: str) -> None:
    samples = TARGETS[name].samples
    inputs = [b"\x00" * (1 << 20), b"[" * (1 << 20), b'"' + b"\\u0041" * 150_000 + b'"', samples[0] * 400]
    for data in inputs:
        tracemalloc.start()
        began = time.monotonic()
        try:
            attempt(TARGETS[name], data)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert time.monotonic() - began < 5 * SLOWEST_S
        assert peak < MEMORY_MAX_BYTES
