"""Decisions → answers, and answers → bytes and headers.

A command that is repeated after its answer was forgotten gets an answer rebuilt from its stored
events; :func:`recall` and the rules' own ``result`` must say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from controlplane.service.planner import Decided
from events.codec import Recorded
from events.commands import CommandReply, WrittenEvent
from events.errors import BadRequest, IsthmusError, Unavailable
from events.types import AllocationRefused

_encode = msgspec.json.Encoder(enc_hook=str).encode

SERVICE_ERROR = "Nats-Service-Error"
SERVICE_ERROR_CODE = "Nats-Service-Error-Code"


def reply_to(decided: Decided, last: int, bodies: Sequence[bytes] | None, now: datetime) -> CommandReply:
    """The answer to a decided command. ``last`` is the log's last sequence that it rests on.

    ``bodies`` are its events as stored; None in a dry run, where sequences are provisional.
    """
    dry_run = decided.pending.request.dry_run
    if bodies is None:
        bodies = [_encode(event) for event in decided.events]
        last_event = last + len(bodies)
    else:
        last_event = last
    first = last_event - len(bodies) + 1
    return CommandReply(
        sequence=last,
        events=tuple(
            WrittenEvent(sequence=first + i, type=event.type_name(), event=msgspec.Raw(body))
            for i, (event, body) in enumerate(zip(decided.events, bodies, strict=True))
        ),
        result=decided.result,
        dry_run=dry_run,
        answered_at=now,
    )


def encode_reply(reply: CommandReply) -> bytes:
    """The body of a good answer."""
    return _encode(reply)


def encode_error(
    error: IsthmusError, *, sequence: int = 0, now: datetime | None = None
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an answer that says no.

    ``Nats-Service-Error-Code`` is the HTTP class that the NATS service convention uses: 400, 409,
    503 or 500.
    """
    reply = CommandReply(
        sequence=sequence, code=error.code, message=error.message, details=error.details, answered_at=now
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
