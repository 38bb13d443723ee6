"""A dict that is laid over another one: reads fall through, writes stay on top.

It makes :meth:`controlplane.cluster.state.ClusterState.fork` cost the same for ten nodes as for a hundred
thousand. While an overlay is in use its base may only catch up with it: be written to as the
overlay was, in the same order. That shows nowhere in the overlay.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_MISSING: Any = object()


def forked(base: MutableMapping[K, V]) -> MutableMapping[K, V]:
    """A map that starts equal to ``base`` and is written to by itself: over nothing a dict, which is faster."""
    return Overlay(base) if base else {}


def absorbed(mine: MutableMapping[K, V], fork: MutableMapping[K, V]) -> MutableMapping[K, V]:
    """``mine`` with what was written to ``fork``, which :func:`forked` made of it; O(what was written).

    Neither of the two is to be used any more.
    """
    if not isinstance(fork, Overlay):
        return fork  # mine was empty
    if isinstance(mine, Overlay):
        mine.absorb(fork)
    else:
        fork.write_to(mine)
    return mine


class Overlay(MutableMapping[K, V]):
    """Behaves as the base dict would after the same writes, its order included."""

    __slots__ = ("_added", "_base", "_gone", "_kept", "_top")

    def __init__(self, base: MutableMapping[K, V]) -> None:
        self._base: MutableMapping[K, V] = base.written() if isinstance(base, Overlay) else base
        self._top: dict[K, V] = {}
        # Keys that were deleted, even if they came back since. Also those that the base lacks: while it
        # catches up, it holds for a moment what was added and deleted here.
        self._gone: set[K] = set()
        self._added: set[K] = set()  # keys of the top that were not there before, hence last in order
        self._kept = len(base)  # how many of those that were there before are there still

    def __getitem__(self, key: K) -> V:
        value: V = self._top.get(key, _MISSING)
        if value is not _MISSING:
            return value
        if key in self._gone:
            raise KeyError(key)
        return self._base[key]

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | T) -> V | T: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        value: Any = self._top.get(key, _MISSING)
        if value is not _MISSING:
            return value
        return default if key in self._gone else self._base.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._top or (key not in self._gone and key in self._base)

    def __setitem__(self, key: K, value: V) -> None:
        top = self._top
        if key not in top and (key not in self._base or key in self._gone):
            self._added.add(key)
        top[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._top.pop(key, None)
        if key in self._added:
            self._added.remove(key)
        else:
            self._kept -= 1
        self._gone.add(key)

    def __len__(self) -> int:
        return self._kept + len(self._added)

    def __iter__(self) -> Iterator[K]:
        if not self._top and not self._gone:
            return iter(self._base)
        return self._merged()

    def _merged(self) -> Iterator[K]:
        gone, added = self._gone, self._added
        for key in self._base:
            if key not in gone and key not in added:
                yield key
        for key in self._top:
            if key in added:
                yield key

    def written(self) -> MutableMapping[K, V]:
        """The highest layer that holds anything: below one that nothing was written to, its base."""
        return self if self._top or self._gone else self._base

    def absorb(self, other: Overlay[K, V]) -> None:
        """Take over everything that was written to ``other``, an overlay of this one; O(what was written)."""
        count = len(other)
        for key in other._gone:
            self._top.pop(key, None)
            self._added.discard(key)
        self._gone |= other._gone
        self._top.update(other._top)
        self._added |= other._added
        self._kept = count - len(self._added)

    def write_to(self, base: MutableMapping[K, V]) -> None:
        """Make everything that was written to this overlay of ``base`` true of it; O(what was written)."""
        for key in self._gone:
            base.pop(key, None)
        base.update(self._top)

    # A tick walks over all members on a fork that has mostly changed nothing yet: then at dict speed.

    def items(self) -> ItemsView[K, V]:
        return super().items() if self._top or self._gone else self._base.items()

    def values(self) -> ValuesView[V]:
        return super().values() if self._top or self._gone else self._base.values()
