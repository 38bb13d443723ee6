"""Decisions → answers, and answers → bytes and headers.

A command that is repeated after its answer was forgotten gets an answer rebuilt from its stored
events; :func:`recall` and the rules' own ``result`` must say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from controlplane.controller.commands.planner import Decided
from events import types
from events.codec import OutgoingMessage, Recorded
from events.errors import BadRequest, IsthmusError, Unavailable, from_wire
from events.protocol.commands import CommandReply, WrittenEvent

_encode = msgspec.json.Encoder(enc_hook=str).encode

SERVICE_ERROR = "Nats-Service-Error"
SERVICE_ERROR_CODE = "Nats-Service-Error-Code"


def reply_to(
    decided: Decided, last: int, stored: Sequence[OutgoingMessage] | None, now: datetime
) -> CommandReply:
    """The answer to a decided command. ``last`` is the log's last sequence that it rests on.

    ``stored`` are its events as they were appended; None in a dry run, where sequences are provisional.
    """
    dry_run = decided.pending.request.dry_run
    if stored is None:
        events = [
            WrittenEvent(sequence=at, type=event.type_name(), event=msgspec.Raw(_encode(event)))
            for at, event in enumerate(decided.events, last + 1)
        ]
    else:
        events = [
            WrittenEvent(sequence=at, type=message.type_name, event=msgspec.Raw(message.body))
            for at, message in enumerate(stored, last - len(stored) + 1)
        ]
    return CommandReply(
        sequence=last, events=tuple(events), result=decided.result, dry_run=dry_run, answered_at=now
    )


def recall(recorded: Sequence[Recorded], now: datetime) -> CommandReply | IsthmusError:
    """The first answer once more, from the events that the command is known to have stored."""
    if not recorded:
        return Unavailable(
            "log_unavailable", "the command happened, but its events could not be read; ask again"
        )
    last = recorded[-1]
    if isinstance(last.event, types.AllocationRefused | types.ClbRefused | types.ConflictRefused):
        return from_wire(last.event.code, last.event.message)
    joins = _joins(recorded)
    result: dict[str, Any]
    if len(joins) > 1:
        lines = [{"line": number, "status": "joined", **join} for number, join in enumerate(joins, 1)]
        result = {"joined": len(joins), "unchanged": 0, "lines": lines}
    elif joins:
        result = joins[0]
    else:
        # An accepted overlap stands beside what the command was for.
        main = next((r for r in reversed(recorded) if not isinstance(r.event, types.ConflictOverridden)), last)
        result = msgspec.to_builtins(main.event)
    return CommandReply(
        sequence=last.sequence,
        events=tuple(
            WrittenEvent(sequence=r.sequence, type=r.envelope.type, event=msgspec.Raw(_encode(r.event)))
            for r in recorded
        ),
        result=result,
        duplicate=True,
        answered_at=now,
    )


def _joins(recorded: Sequence[Recorded]) -> list[dict[str, Any]]:
    """What each join among the events was answered with."""
    joined = {r.event.uid: r.event for r in recorded if isinstance(r.event, types.NodeJoined)}
    return [
        {
            "node": r.event.node,
            "uid": r.event.uid,
            "cidr": r.event.cidr,
            "index": r.event.index,
            "epoch": r.sequence,
            "vtep_mac": joined[r.event.uid].vtep_mac,
            "underlay": joined[r.event.uid].underlay,
            "announced": joined[r.event.uid].announced,
        }
        for r in recorded
        if isinstance(r.event, types.RangeAllocated) and r.event.uid in joined
    ]


def encode_reply(reply: CommandReply) -> bytes:
    """The body of a good answer."""
    return _encode(reply)


def encode_error(error: IsthmusError, *, now: datetime | None = None) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an answer that says no.

    ``Nats-Service-Error-Code`` is the HTTP class that the NATS service convention uses: 400, 409,
    503 or 500.
    """
    reply = CommandReply(
        sequence=0, code=error.code, message=error.message, details=error.details, answered_at=now
    )
    if isinstance(error, BadRequest):
        number = "400"
    elif isinstance(error, Unavailable):
        number = "503"
    elif error.code == "internal":
        number = "500"
    else:
        number = "409"
    text = error.message.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
    return _encode(reply), {SERVICE_ERROR: f"{error.code}: {text[:512]}", SERVICE_ERROR_CODE: number}
