"""The pool and the overlay against what they replace: a set of numbers, and a dict."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controlplane.cluster.addressing.pool import Pool
from controlplane.cluster.layered_dict import Overlay, absorbed, forked


class PoolAgainstSet(RuleBasedStateMachine):
    """Sizes around the chunk of 4,096; forks are taken and thrown away on the way."""

    @initialize(capacity=st.sampled_from([1, 5, 4095, 4096, 4097, 9000]))
    def start(self, capacity: int) -> None:
        self.pool = Pool()
        self.pool.grow(capacity)
        self.capacity = capacity
        self.taken: set[int] = set()

    def next(self, start: int) -> int | None:
        return next(
            (
                i % self.capacity
                for i in range(start, start + self.capacity)
                if i % self.capacity not in self.taken
            ),
            None,
        )

    @rule(at=st.floats(0, 1, exclude_max=True), count=st.sampled_from([1, 3, 4096]))
    def take(self, at: float, count: int) -> None:
        start = int(at * self.capacity)
        for _ in range(count):
            index = self.pool.next_free(start)
            if index is None:
                assert len(self.taken) == self.capacity
                return
            if count == 1:
                assert index == self.next(start)
            self.pool.take(index)
            assert index not in self.taken
            self.taken.add(index)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = sorted(self.taken)[data.draw(st.integers(0, len(self.taken) - 1))]
        self.pool.release(index)
        self.taken.discard(index)
        with pytest.raises(LookupError):
            self.pool.release(index)

    @rule(count=st.sampled_from([1, 100, 4096]))
    def grow(self, count: int) -> None:
        if self.capacity < 20_000:
            self.pool.grow(count)
            self.capacity += count

    @rule(at=st.floats(0, 1, exclude_max=True))
    def a_fork_changes_nothing(self, at: float) -> None:
        fork = self.pool.fork().fork()
        index = fork.next_free(int(at * self.capacity))
        if index is not None:
            fork.take(index)
            assert not self.pool.taken(index)
        for held in list(self.taken)[:5]:
            fork.release(held)
            assert self.pool.taken(held)
        fork.grow(10)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.capacity == self.capacity
            assert self.pool.free == self.capacity - len(self.taken)
            for start in (0, self.capacity // 2, self.capacity - 1):
                assert self.pool.next_free(start) == self.next(start)


PoolAgainstSet.TestCase.settings = settings(settings.default, max_examples=40, stateful_step_count=25)
TestPool = PoolAgainstSet.TestCase


def test_a_range_is_taken_once() -> None:
    pool = Pool()
    pool.grow(3)
    pool.take(1)
    with pytest.raises(LookupError):
        pool.take(1)
    with pytest.raises(LookupError):
        pool.take(3)
    with pytest.raises(LookupError):
        pool.release(3)


_operations = st.lists(
    st.tuples(st.sampled_from(["set", "del", "pop", "get"]), st.integers(0, 9), st.integers()), max_size=60
)


@given(base=st.dictionaries(st.integers(0, 9), st.integers()), operations=_operations)
def test_an_overlay_behaves_as_its_dict_would_and_leaves_it_alone(
    base: dict[int, int], operations: list[tuple[str, int, int]]
) -> None:
    expected, before = dict(base), dict(base)
    overlay: Overlay[int, int] = Overlay(Overlay(base))
    for what, key, value in operations:
        if what == "set":
            overlay[key] = value
            expected[key] = value
        elif what == "del" and key in expected:
            del overlay[key], expected[key]
        elif what == "del":
            with pytest.raises(KeyError):
                del overlay[key]
        elif what == "pop":
            assert overlay.pop(key, None) == expected.pop(key, None)
        else:
            assert overlay.get(key, -1) == expected.get(key, -1)
            assert (key in overlay) == (key in expected)
        assert len(overlay) == len(expected)
    assert list(overlay.items()) == list(expected.items())
    assert base == before


@pytest.mark.parametrize("make", [Overlay, forked])
@given(base=st.dictionaries(st.integers(0, 5), st.integers()), data=st.data())
def test_an_overlay_does_not_show_that_its_base_catches_up(
    make: Callable[[MutableMapping[int, int]], MutableMapping[int, int]],
    base: dict[int, int],
    data: st.DataObject,
) -> None:
    """Its base repeats the overlay's writes at any distance behind; others are absorbed on the way."""
    expected = dict(base)
    overlay = make(base)
    writes: list[tuple[int, int | None]] = []
    for _ in range(data.draw(st.integers(0, 12))):
        top = make(overlay) if data.draw(st.booleans()) else overlay
        for _ in range(data.draw(st.integers(1, 4))):
            key = data.draw(st.integers(0, 5))
            value = data.draw(st.integers()) if key not in expected or data.draw(st.booleans()) else None
            writes.append((key, value))
            for target in (top, expected):
                if value is None:
                    del target[key]
                else:
                    target[key] = value
            assert list(top.items()) == list(expected.items())
            assert [top.get(k) for k in range(6)] == [expected.get(k) for k in range(6)]
        if top is not overlay:
            overlay = absorbed(overlay, top)
        for _ in range(data.draw(st.integers(0, len(writes)))):
            key, value = writes.pop(0)
            if value is None:
                del base[key]
            else:
                base[key] = value
            assert len(overlay) == len(expected)
            assert list(overlay.items()) == list(expected.items())
            assert [k in overlay for k in range(6)] == [k in expected for k in range(6)]
            assert [overlay.get(k) for k in range(6)] == [expected.get(k) for k in range(6)]
