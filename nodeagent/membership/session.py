"""The connection to the bus as it is now."""

from __future__ import annotations

import asyncio

import msgspec
from nats.aio.client import Client

from events.ids import new_id


class BusSession(msgspec.Struct):
    """The connection to the bus as it is now: the follower keeps it, other parts read it.

    ``pending``: events known to be in the log and not yet read. ``replaced``: the bus has another log than
    the one that the rows are from. ``caught_up`` is set once the view has reached the log's known end.
    ``instance`` is this process's name. ``held``: another machine with this identity reports, and keeps its
    place. ``asked`` is set once the controllers were asked for it, ``admitted`` unless they refused so.
    """

    client: Client | None = None
    connected: bool = False
    last_at: float = 0.0
    pending: int = 0
    joined: bool = False
    replaced: bool = False
    held: bool = False
    caught_up: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    asked: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    admitted: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    instance: str = msgspec.field(default_factory=new_id)
