"""The temporal tables as a batch of events changes them: worked out in memory, written in bulk.

A :class:`Table` knows which rows are open (true until further notice), in the file and in the batch.
Nothing here knows what an event means.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

from controlplane.readmodel.schema import OPEN

K = TypeVar("K")

CHUNKS = (64, 8, 1)
"""Rows per statement: few statements for many rows, and few different texts for SQLite to keep prepared."""


PREFETCH = 500
"""Keys of one reading; below every build's limit on parameters."""


class Contradiction(Exception):
    """An event that does not fit the rows; the text says why."""


class Shape(NamedTuple):
    """A table: its name, what identifies its open row, and its other columns in order (the key's included)."""

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]


Node = Shape("node", ("name",), ("name", "row", "unreachable", "last_seen_us"))
Range = Shape("range", ("idx",), ("idx", "node", "row", "phase", "until_us", "watermark", "cursor_after"))
Fenced = Shape("fenced", ("uid",), ("uid", "row"))
Fact = Shape("fact", ("kind", "key", "part"), ("kind", "key", "part", "value"))


class Table(Generic[K]):
    """One temporal table during a batch. Rows are lists: the columns, then the four of validity."""

    def __init__(self, connection: sqlite3.Connection, shape: Shape) -> None:
        self._execute = connection.execute
        self._shape = shape
        self._single = len(shape.key) == 1
        self._rows: list[list[Any]] = []
        self._opened: dict[K, list[Any]] = {}  # key → its open row of this batch
        self._ended: dict[K, tuple[int, int]] = {}  # key → when the file's open row ended
        self._fetched: dict[K, Any] = {}
        columns = ", ".join(shape.columns)
        self._insert = f"INSERT INTO {shape.table} ({columns}, valid_from, valid_to, from_us, to_us) VALUES "  # noqa: S608
        width = len(shape.key)
        match = " AND ".join(f"{shape.table}.{name} = c.column{i}" for i, name in enumerate(shape.key, 1))
        ended, at = f"c.column{width + 1}", f"c.column{width + 2}"
        self._close = f"UPDATE {shape.table} SET valid_to = {ended}, to_us = {at} FROM (VALUES "  # noqa: S608
        # Partial indices serve only a literal, hence the constant in the text.
        self._close_end = f") AS c WHERE {match} AND {shape.table}.valid_to = {OPEN}"
        where = " AND ".join(f"{name} = ?" for name in shape.key)
        self._select = f"SELECT {columns} FROM {shape.table} WHERE {where} AND valid_to = {OPEN}"  # noqa: S608

    def open(self, key: K, columns: list[Any], sequence: int, time_us: int) -> None:
        """A row becomes true. Raises Contradiction when one under the key still is (as far as known here)."""
        if key in self._opened:
            raise Contradiction(f"{self._shape.table} {key} is there already")
        row = [*columns, sequence, OPEN, time_us, OPEN]
        self._opened[key] = row
        self._rows.append(row)

    def close(self, key: K, sequence: int, time_us: int) -> None:
        """The open row under the key ends. Raises Contradiction, now or in :meth:`write`, if there is none."""
        row = self._opened.pop(key, None)
        if row is not None:
            row[-3] = sequence
            row[-1] = time_us
        elif key in self._ended:
            raise Contradiction(f"there is no {self._shape.table} {key}")
        else:
            self._ended[key] = (sequence, time_us)

    def replace(self, key: K, columns: list[Any], sequence: int, time_us: int) -> None:
        """The open row ends, and another takes its place."""
        self.close(key, sequence, time_us)
        self.open(key, columns, sequence, time_us)

    def prefetch(self, keys: Iterable[K]) -> None:
        """Read the file's open rows under these keys at once, because :meth:`current` will want them."""
        pending = [value for key in keys for value in self._flat(key)]
        column = self._shape.key[0]
        for start in range(0, len(pending), PREFETCH):
            part = pending[start : start + PREFETCH]
            for row in self._execute(
                f"SELECT {', '.join(self._shape.columns)} FROM {self._shape.table}"  # noqa: S608
                f" WHERE {column} IN ({', '.join('?' * len(part))}) AND valid_to = {OPEN}",
                part,
            ):
                self._fetched[row[self._shape.columns.index(column)]] = row

    def current(self, key: K) -> list[Any]:
        """The columns of the open row, to be changed at will. Raises Contradiction when there is none."""
        row = self._opened.get(key)
        if row is not None:
            return row[:-4]
        found = None
        if key not in self._ended:
            found = self._fetched.get(key) or self._execute(self._select, self._flat(key)).fetchone()
        if found is None:
            raise Contradiction(f"there is no {self._shape.table} {key}")
        return list(found)

    def is_open(self, key: K) -> bool:
        """Whether a row is open under the key, in this batch or in the file."""
        if key in self._opened:
            return True
        return key not in self._ended and self._execute(self._select, self._flat(key)).fetchone() is not None

    def opened_keys(self) -> list[K]:
        """The keys whose open rows began in this batch."""
        return list(self._opened)

    def write(self) -> None:
        """Write the batch. Raises Contradiction when a row that should end does not exist, and
        sqlite3.IntegrityError when one that should begin does already."""
        if self._ended:
            ends = [(*self._flat(key), *end) for key, end in self._ended.items()]
            done = bulk(self._execute, self._close, len(self._shape.key) + 2, self._close_end, ends)
            if done != len(ends):
                raise Contradiction(f"{len(ends) - done} of {len(ends)} {self._shape.table} rows do not exist")
        bulk(self._execute, self._insert, len(self._shape.columns) + 4, "", self._rows)

    def clear(self) -> None:
        """Forget the batch."""
        self._rows, self._opened, self._ended, self._fetched = [], {}, {}, {}

    def _flat(self, key: Any) -> tuple[Any, ...]:
        return (key,) if self._single else key


_texts: dict[tuple[str, int, str], str] = {}


def bulk(
    execute: Callable[..., sqlite3.Cursor],
    head: str,
    width: int,
    tail: str,
    rows: Iterable[Iterable[Any]],
) -> int:
    """``head (?, …), (?, …) … tail`` for all rows, many per statement. Returns how many rows it touched."""
    pending = list(rows)
    position = touched = 0
    for size in CHUNKS:
        text = _texts.get((head, size, tail))
        if text is None:
            marks = f"({', '.join('?' * width)})"
            text = _texts[head, size, tail] = head + ", ".join([marks] * size) + tail
        while len(pending) - position >= size:
            values = list(chain.from_iterable(pending[position : position + size]))
            touched += execute(text, values).rowcount
            position += size
    return touched
