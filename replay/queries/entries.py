"""``log``: the events themselves, filtered."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

import msgspec

from events.codec import Recorded, StoredMessage, decode
from events.errors import Usage, VerificationFailed
from replay.archive.postings import keys_of
from replay.history import History, OnHole, Progress
from replay.queries.lives import fields
from replay.queries.stamp import Stamp, stamp

FIRST_STRETCH = 1000
"""Events that are looked through first for the newest; each further stretch is four times as long."""

UNREADABLE_SHOWN = 500
"""Bytes that are shown of an event's body which is no event."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """All that are given must fit. ``types`` match as prefixes (``range``, ``range.freed``).

    ``address`` fits an event that names it or a range that contains it.
    """

    node: str = ""
    range: str = ""
    address: str = ""
    types: tuple[str, ...] = ()
    actor: str = ""
    command: str = ""
    trace: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One event for the eye: its stamp, what it is about, and its fields (or why it cannot be read)."""

    stamp: Stamp
    entity: str
    event: dict[str, Any]


class _Net(msgspec.Struct, gc=False):
    cidr: str = ""
    subnet: str = ""


_net = msgspec.json.Decoder(_Net)


class Matcher:
    """A compiled filter. Raises Usage for an address that is none."""

    def __init__(self, wanted: Filter) -> None:
        self._wanted = wanted
        self._keys = {f"node/{wanted.node}"} if wanted.node else set()
        if wanted.range:
            self._keys.add(f"range/{wanted.range}")
        try:
            self._address = IPv4Address(wanted.address) if wanted.address else None
        except (AddressValueError, ValueError) as error:
            raise Usage("usage", f"{wanted.address!r} is no IPv4 address") from error

    def fits(self, message: StoredMessage) -> bool:
        """Whether a stored event fits, by its headers first."""
        wanted, headers = self._wanted, message.headers
        if wanted.types and not headers.get("ce-type", "").startswith(wanted.types):
            return False
        if wanted.actor and wanted.actor not in headers.get("ce-actor", ""):
            return False
        if wanted.command and headers.get("ce-commandid", "") != wanted.command:
            return False
        if wanted.trace and wanted.trace not in headers.get("traceparent", ""):
            return False
        if self._keys and not self._keys <= set(keys_of(message)):
            return False
        return self._address is None or self._near(self._address, message)

    def _near(self, address: IPv4Address, message: StoredMessage) -> bool:
        if f"address/{address}" in keys_of(message):
            return True
        try:
            names = _net.decode(message.body)
            return any(address in IPv4Network(text) for text in (names.cidr, names.subnet) if text)
        except (msgspec.MsgspecError, ValueError):
            return False


async def entries(
    history: History,
    wanted: Filter,
    *,
    after: int = 0,
    until: int | None = None,
    follow: bool = False,
    on_hole: OnHole | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[list[Entry]]:
    """Matching events of ``(after, until]`` in batches, in order; with ``follow`` also what comes later.

    One node's or one range's events come through the log's index. ``on_hole`` as for
    :meth:`replay.history.History.messages`.
    """
    matcher = Matcher(wanted)
    kind, name = ("node", wanted.node) if wanted.node else ("range", wanted.range)
    if name and not follow:
        async for recorded in history.about(kind, name, after=after, until=until):
            message = await history.message(recorded.sequence)
            if matcher.fits(message):
                yield [entry(recorded)]
        return
    async for batch in history.messages(after=after, until=until, follow=follow, on_hole=on_hole):
        found = [_entry(message) for message in batch if matcher.fits(message)]
        if found or follow:
            yield found
        if progress:
            progress(batch[-1].sequence)


async def newest(
    history: History,
    wanted: Filter,
    count: int,
    *,
    after: int,
    until: int,
    on_hole: OnHole | None = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """The last ``count`` matching events of ``(after, until]``, in order; reads no more than it must."""
    kind, name = ("node", wanted.node) if wanted.node else ("range", wanted.range)
    found: list[Entry] = []
    if name:
        matcher = Matcher(wanted)
        async for recorded in history.about(kind, name, after=after, until=until, newest_first=True):
            if matcher.fits(await history.message(recorded.sequence)):
                found.append(entry(recorded))
                if len(found) == count:
                    break
        return found[::-1]
    high, size = until, max(FIRST_STRETCH, count)
    while high > after and len(found) < count:
        low = max(after, high - size)
        stretch: deque[Entry] = deque(maxlen=count - len(found))
        async for batch in entries(history, wanted, after=low, until=high, on_hole=on_hole):
            stretch.extend(batch)
        found = [*stretch, *found]
        high, size = low, size * 4
        if progress:
            progress(after + until - low)
    return found


def _entry(message: StoredMessage) -> Entry:
    try:
        return entry(decode(message))
    except VerificationFailed as error:
        # An event that cannot be decoded must still be visible: it is what one looks for.
        from replay.when import from_ns

        moment = from_ns(message.recorded_ns)
        return Entry(
            stamp=Stamp(
                sequence=message.sequence,
                type=message.headers.get("ce-type", "?"),
                recorded_at=moment,
                time=moment,
                actor=message.headers.get("ce-actor", "?"),
                command_id=message.headers.get("ce-commandid", "?"),
            ),
            entity=message.subject,
            event={
                "unreadable": error.message,
                "id": message.headers.get("ce-id", "?"),
                "stored": message.body[:UNREADABLE_SHOWN].decode(errors="replace"),
            },
        )


def entry(recorded: Recorded) -> Entry:
    """A decoded event for the eye."""
    return Entry(stamp=stamp(recorded), entity=recorded.event.entity, event=fields(recorded))
