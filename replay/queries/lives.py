"""``history`` and ``blame``: the life of one node, range or reservation, and where each fact comes from."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from events import types
from events.codec import Recorded
from replay.history import History, Point
from replay.queries.stamp import Stamp, stamp
from replay.queries.unknown import unknown

Thing = Literal["node", "range", "clb", "entry", "cluster"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One event in a thing's life: its stamp and the event's own fields."""

    stamp: Stamp
    event: dict[str, Any]


class Attribute(msgspec.Struct, frozen=True, kw_only=True):
    """One fact about a node and the event that last set it."""

    name: str
    value: str
    stamp: Stamp


async def life(history: History, kind: Thing, name: str, *, until: int | None = None) -> list[Step]:
    """Every event about the thing, in order. For a node also what became of its ranges afterwards.

    Raises Refused(not_in_history) for a name that no event is about.
    """
    found = [recorded async for recorded in history.about(kind, name, until=until)]
    if not found:
        raise await unknown(history, kind, name, until)
    if kind == "node":
        epochs = {r.sequence: r.event.cidr for r in found if isinstance(r.event, types.RangeAllocated)}
        for cidr in dict.fromkeys(epochs.values()):
            first = min(epoch for epoch, held in epochs.items() if held == cidr)
            found += [
                recorded
                async for recorded in history.about("range", cidr, after=first, until=until)
                if isinstance(recorded.event, types.RangeQuarantined | types.RangeFreed)
                and recorded.event.epoch in epochs
            ]
        found.sort(key=lambda recorded: recorded.sequence)
    return [Step(stamp=stamp(r), event=fields(r)) for r in found]


def fields(recorded: Recorded) -> dict[str, Any]:
    """The event's fields, as they would be printed."""
    plain: dict[str, Any] = msgspec.to_builtins(recorded.event)
    if isinstance(plain.get("body"), str) and "type" in plain:  # an unknown type: its body came as base64
        plain = {"unknown": plain["type"], "bytes": len(plain["body"])}
    return plain


async def blame(history: History, node: str, at: Point) -> list[Attribute]:
    """Each attribute of the node at ``at``, with the event that last set it.

    Raises Refused(not_in_history) for a node that the log does not know by then. Cancelled, it leaves nothing
    behind.
    """
    known: dict[str, Attribute] = {}

    def put(recorded: Recorded, **values: object) -> None:
        for name, value in values.items():
            text = "" if value is None else str(value)
            known[name] = Attribute(name=name, value=text, stamp=stamp(recorded))

    async for recorded in history.about("node", node, until=at.sequence):
        match recorded.event:
            case types.NodeJoined() as e:
                put(recorded, member="yes", reachable="yes", uid=e.uid, kind=e.kind, site=e.site)
                put(recorded, underlay=e.underlay, announced=e.announced, vtep_mac=e.vtep_mac)
            case types.NodeUnderlayChanged() as e:
                put(recorded, underlay=e.underlay, announced=e.announced)
                if e.vtep_mac:
                    put(recorded, vtep_mac=e.vtep_mac)
            case types.NodeUnreachable() as e:
                put(recorded, reachable=f"no, last seen {e.last_seen}" if e.last_seen else "no")
            case types.NodeRecovered():
                put(recorded, reachable="yes")
            case types.NodeLeft() as e:
                put(recorded, member=f"no, left: {e.reason}" if e.reason else "no, left")
            case types.NodeFenced() as e if not e.former:
                put(recorded, member=f"no, fenced ({e.cause})")
            case types.RangeAllocated() as e:
                put(recorded, range=e.cidr, epoch=recorded.sequence)
            case types.RangeDraining() as e:
                if "uid" in known and e.uid == known["uid"].value:
                    put(recorded, range=f"none (gave back {e.cidr})", epoch="")
            case other:
                put(recorded, **{f"last {other.aggregate} {other.verb}": getattr(other, "code", "yes")})
    if not known:
        raise await unknown(history, "node", node, at.sequence)
    return list(known.values())
