"""Which ranges are free, and which is next: a chunked map with a summary level.

Ranges are counted by index over all container CIDRs. One byte says taken or free, so that the
search for the next free one is the C library's ``memchr``; a summary byte per chunk says full, so
that full chunks are skipped the same way. A search that finds a chunk full notes it, a release
forgets it: the fold, which never searches, need not count. The cost of an allocation does not
depend on how full the pool is.

The pool knows indices only: no owners, no states, no addresses.
"""

from __future__ import annotations

from collections.abc import Collection

_SHIFT = 12
_CHUNK = 1 << _SHIFT
_MASK = _CHUNK - 1


class Pool:
    """``capacity`` ranges, ``free`` of them free, the search for the next one starting at ``cursor``."""

    __slots__ = ("_chunks", "_full", "capacity", "cursor", "free")

    def __init__(self) -> None:
        self.capacity = 0
        self.cursor = 0
        self.free = 0
        self._chunks: list[bytearray] = []
        self._full = bytearray()  # per chunk: 1 when it is known to be full (0 says nothing)

    def grow(self, count: int) -> None:
        """Append ``count`` free ranges."""
        target = self.capacity + count
        while len(self._chunks) << _SHIFT < target:
            # Entries beyond the capacity count as taken, so that no search returns them.
            self._chunks.append(bytearray(b"\1" * _CHUNK))
            self._full.append(0)
        for index in range(self.capacity >> _SHIFT, len(self._chunks)):
            low = max(self.capacity - (index << _SHIFT), 0)
            high = min(target - (index << _SHIFT), _CHUNK)
            if high > low:
                self._chunks[index] = bytearray(self._chunks[index])
                self._chunks[index][low:high] = bytes(high - low)
                self._full[index] = 0
        self.capacity = target
        self.free += count

    def taken(self, index: int) -> bool:
        """Whether the range is not free."""
        return self._chunks[index >> _SHIFT][index & _MASK] != 0

    def take(self, index: int) -> None:
        """Mark a free range as taken. Raises LookupError when it is taken already or does not exist."""
        chunk = self._chunks[index >> _SHIFT]
        if chunk[index & _MASK]:
            raise LookupError(f"range {index} is not free")
        chunk[index & _MASK] = 1
        self.free -= 1

    def take_all(self, indices: Collection[int]) -> None:
        """Mark free ranges as taken. Raises LookupError, some marked, for one that is not free."""
        chunks = self._chunks
        for index in indices:
            chunk = chunks[index >> _SHIFT]
            if chunk[index & _MASK]:
                raise LookupError(f"range {index} is not free")
            chunk[index & _MASK] = 1
        self.free -= len(indices)

    def release(self, index: int) -> None:
        """Mark a taken range as free. Raises LookupError when it is free already or does not exist."""
        number = index >> _SHIFT
        chunk = self._chunks[number]
        if not chunk[index & _MASK] or index >= self.capacity:
            raise LookupError(f"range {index} is not taken")
        chunk[index & _MASK] = 0
        self._full[number] = 0
        self.free += 1

    def next_free(self, start: int) -> int | None:
        """The first free index at or after ``start``, wrapping round; None when the pool is exhausted."""
        if not self.free:
            return None
        number = start >> _SHIFT
        found = self._chunks[number].find(0, start & _MASK)
        while found < 0:
            # On to the next chunk that may have one. The first is met again last, from its beginning.
            number = self._full.find(0, number + 1)
            if number < 0:
                number = self._full.find(0)
            found = self._chunks[number].find(0)
            if found < 0:
                self._full[number] = 1
        return (number << _SHIFT) + found

    def fork(self) -> Pool:
        """A pool that starts equal and diverges; meanwhile this one may only catch up with it."""
        return _ForkedPool(self)


def cursor_behind(pool: Pool, index: int) -> int:
    """The cursor once a given range is taken: behind it, unless it is beyond it already."""
    return (index + 1) % pool.capacity if index >= pool.cursor else pool.cursor


class _ForkedPool(Pool):
    """Copies a chunk the first time it writes to it; the summary (one byte per 4,096 ranges) at once."""

    __slots__ = ("_own",)

    def __init__(self, base: Pool) -> None:
        self.capacity = base.capacity
        self.cursor = base.cursor
        self.free = base.free
        self._chunks = base._chunks.copy()  # noqa: SLF001  a fork is made of its base
        self._full = base._full.copy()  # noqa: SLF001
        self._own: set[int] = set()

    def _claim(self, index: int) -> None:
        number = index >> _SHIFT
        if number not in self._own:
            self._chunks[number] = self._chunks[number].copy()
            self._own.add(number)

    def take(self, index: int) -> None:
        self._claim(index)
        super().take(index)

    def release(self, index: int) -> None:
        self._claim(index)
        super().release(index)
