"""The headers of an event: who, when, why, as part of what, and the hash chain.

CloudEvents 1.0 in binary mode over NATS (an attribute is a header ``ce-<name>``), with the
extensions ``actor``, ``commandid``, ``correlationid``, ``causationid``, ``txindex``, ``txcount``
and ``chain``, and the W3C ``traceparent``/``tracestate``. Values are printable ASCII; anything else
is percent-encoded, as the binding demands.

``txindex``/``txcount`` repeat the boundaries of the atomic batch, because the server's own batch
headers are stripped by mirrors.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, unquote

import msgspec

from events.chain import CHAIN_HEADER
from events.errors import VerificationFailed

_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of one event. ``time`` is when the decision was made, by the controller's clock (UTC)."""

    id: str
    type: str
    source: str
    time: datetime
    actor: str
    command_id: str
    correlation_id: str = ""
    causation_id: str = ""
    tx_index: int = 0
    tx_count: int = 1
    traceparent: str = ""
    tracestate: str = ""
    chain: str = ""


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: one spelling per moment, because headers are hashed."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_headers(envelope: Envelope) -> dict[str, str]:
    """The NATS headers of an event, without the chain (its digest needs these first)."""
    headers = {
        "Nats-Msg-Id": envelope.id,
        "ce-specversion": "1.0",
        "ce-id": envelope.id,
        "ce-type": envelope.type,
        "ce-source": quote(envelope.source, safe=_SAFE),
        "ce-time": format_time(envelope.time),
        "ce-datacontenttype": "application/json",
        "ce-actor": quote(envelope.actor, safe=_SAFE),
        "ce-commandid": quote(envelope.command_id, safe=_SAFE),
        "ce-txindex": str(envelope.tx_index),
        "ce-txcount": str(envelope.tx_count),
    }
    if envelope.correlation_id:
        headers["ce-correlationid"] = quote(envelope.correlation_id, safe=_SAFE)
    if envelope.causation_id:
        headers["ce-causationid"] = quote(envelope.causation_id, safe=_SAFE)
    if envelope.traceparent:
        headers["traceparent"] = quote(envelope.traceparent, safe=_SAFE)
    if envelope.tracestate:
        headers["tracestate"] = quote(envelope.tracestate, safe=_SAFE)
    return headers


def from_headers(headers: Mapping[str, str], sequence: int) -> Envelope:
    """Read the envelope of the event stored at ``sequence``.

    Raises VerificationFailed(event_malformed) when a required header is missing or unreadable.
    """
    try:
        return Envelope(
            id=headers["ce-id"],
            type=headers["ce-type"],
            source=unquote(headers["ce-source"]),
            time=datetime.fromisoformat(headers["ce-time"]),
            actor=unquote(headers["ce-actor"]),
            command_id=unquote(headers["ce-commandid"]),
            correlation_id=unquote(headers.get("ce-correlationid", "")),
            causation_id=unquote(headers.get("ce-causationid", "")),
            tx_index=int(headers["ce-txindex"]),
            tx_count=int(headers["ce-txcount"]),
            traceparent=headers.get("traceparent", ""),
            tracestate=headers.get("tracestate", ""),
            chain=headers.get(CHAIN_HEADER, ""),
        )
    except (KeyError, ValueError) as error:
        raise VerificationFailed(
            "event_malformed", f"event {sequence}: its envelope is unreadable ({error})", sequence=sequence
        ) from error
