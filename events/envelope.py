"""The headers of an event: who, when, why, as part of what, and the hash chain.

CloudEvents 1.0 in binary mode over NATS (an attribute is a header ``ce-<name>``), with the
extensions ``actor``, ``commandid``, ``correlationid``, ``causationid``, ``txindex``, ``txcount``
and ``chain``, and the W3C ``traceparent``/``tracestate``. Values are printable ASCII; anything else
is percent-encoded, as the binding demands.

``txindex``/``txcount`` repeat the boundaries of the atomic batch, because the server's own batch
headers are stripped by mirrors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote, unquote

import msgspec

from events.chain import CHAIN_HEADER
from events.errors import VerificationFailed
from events.printable import printable

_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_UNSAFE = re.compile(r"""[^!#$&-~]""")


class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


def quoted(value: str) -> str:
    """The value as a header carries it: printable ASCII, everything else percent-encoded."""
    return quote(value, safe=_SAFE) if _UNSAFE.search(value) else value


def _unquoted(value: str) -> str:
    return unquote(value) if "%" in value else value


@lru_cache(maxsize=64)  # a log has as many as it had controllers
def quoted_source(source: str) -> str:
    """:func:`quoted`, of one of few values."""
    return quoted(source)


@lru_cache(maxsize=256)  # a batch of a thousand events has one time
def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: one spelling per moment, because headers are hashed."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_lines(lines: str) -> dict[str, str]:
    """The headers of an event sealed here, from the ``Name: Value`` lines in which they go over the wire."""
    return dict(line.split(": ", 1) for line in lines.split("\r\n")[:-1])


def from_headers(headers: Mapping[str, str], sequence: int) -> Envelope:
    """Read the envelope of the event stored at ``sequence``; what release 0.2.0 stored raw is made printable.

    Raises VerificationFailed(event_malformed) when a required header is missing or unreadable.
    """
    try:
        return Envelope(
            id=headers["ce-id"],
            type=headers["ce-type"],
            source=printable(_unquoted(headers["ce-source"])),
            time=datetime.fromisoformat(headers["ce-time"]),
            actor=printable(_unquoted(headers["ce-actor"])),
            command_id=_unquoted(headers["ce-commandid"]),
            correlation_id=printable(_unquoted(headers.get("ce-correlationid", ""))),
            causation_id=printable(_unquoted(headers.get("ce-causationid", ""))),
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
