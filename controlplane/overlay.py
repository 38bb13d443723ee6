"""A dict that is laid over another one: reads fall through, writes stay on top.

It makes :meth:`controlplane.state.ClusterState.fork` cost the same for ten nodes as for a hundred
thousand. The base must not change while an overlay is in use.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, TypeVar, overload

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

_MISSING: Any = object()


class Overlay(MutableMapping[K, V]):
    """Behaves as the base dict would after the same writes, its order included."""

    __slots__ = ("_base", "_count", "_gone", "_top")

    def __init__(self, base: MutableMapping[K, V]) -> None:
        self._base = base
        self._top: dict[K, V] = {}
        self._gone: set[K] = set()  # keys of the base that were deleted, even if they came back since
        self._count = len(base)

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
        if key not in self:
            self._count += 1
        self._top[key] = value

    def __delitem__(self, key: K) -> None:
        known = self._top.pop(key, _MISSING) is not _MISSING
        if key not in self._gone and key in self._base:
            self._gone.add(key)
            known = True
        if not known:
            raise KeyError(key)
        self._count -= 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[K]:
        if not self._top and not self._gone:
            return iter(self._base)
        return self._merged()

    def _merged(self) -> Iterator[K]:
        gone, base = self._gone, self._base
        for key in base:
            if key not in gone:
                yield key
        for key in self._top:
            if key in gone or key not in base:
                yield key

    # A tick walks over all members on a fork that has mostly changed nothing yet: then at dict speed.

    def items(self) -> ItemsView[K, V]:
        return super().items() if self._top or self._gone else self._base.items()

    def values(self) -> ValuesView[V]:
        return super().values() if self._top or self._gone else self._base.values()
