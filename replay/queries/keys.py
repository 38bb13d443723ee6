"""``who --key``: which nodes had a public key, from when to when. One pass over the events, no fold."""

from __future__ import annotations

import msgspec

from events import types
from events.codec import decode
from events.errors import Usage
from events.protocol.encryption import key_problem
from replay.history import History, Point
from replay.queries.stamp import Stamp, stamp
from replay.queries.states import base


class KeyHolding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One node's time with a key, also beside a newer one. ``port`` is WireGuard's, 0: it had none. ``to``
    None: still.

    ``since`` None, in a capsule only: it began before the capsule's first event.
    """

    node: str
    uid: str
    port: int = 0
    since: Stamp | None = None
    to: Stamp | None = None


async def who_had_key(history: History, key: str, at: Point) -> list[KeyHolding]:
    """All holdings up to ``at``, in the order of the log; the last one may be still on.

    Raises Usage(usage) for a text that is no key, Refused(not_in_history) for an incremental archive alone.
    """
    problem = key_problem(key)
    if problem:
        raise Usage("usage", f"{key[:64]!r} {problem}", key=key[:64])
    found: list[tuple[KeyHolding, int, int]] = []  # holding, its first event, its end (0: still)
    before = base(history) if history.start else None
    if before is not None:
        for node, known in before.keys.items():
            if key in known.valid:
                found.append((KeyHolding(node=node, uid=before.nodes[node].uid, port=known.port), 0, 0))
    async for batch in history.facts(until=at.sequence):
        for fact in batch:
            event = fact.body
            if not isinstance(event, types.NodeKeyChanged | types.NodeLeft | types.NodeFenced):
                continue
            if found and not found[-1][2] and (found[-1][0].node, found[-1][0].uid) == (event.node, event.uid):
                if isinstance(event, types.NodeKeyChanged) and key in {event.key, event.beside}:
                    found[-1] = (msgspec.structs.replace(found[-1][0], port=event.port), *found[-1][1:])
                    continue
                found[-1] = (*found[-1][:2], fact.seq)
            if isinstance(event, types.NodeKeyChanged) and event.key == key:
                found.append((KeyHolding(node=event.node, uid=event.uid, port=event.port), fact.seq, 0))
    return [
        msgspec.structs.replace(one, since=await _stamp(history, first), to=await _stamp(history, last))
        for one, first, last in found
    ]


async def _stamp(history: History, sequence: int) -> Stamp | None:
    return stamp(decode(await history.message(sequence))) if sequence else None
