"""Logs of every role: one JSON object a line for machines, one plain line for a terminal.

Each line carries the trace and span it was written under and the sequence of the event that is being
handled, or else of the last one that its role had taken in, so that a log line, a trace and the log of
events can be joined.

Fields: ``time`` (RFC 3339, UTC, microseconds), ``level``, ``logger``, ``message``, ``role``,
``instance``; when known ``trace_id``, ``span_id``, ``sequence``; plus whatever the call passes in
``extra={"isthmus": {...}}``; ``error`` holds the last line of an exception, ``stack`` its traceback
(in JSON only).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
from opentelemetry import trace

from events.errors import Usage

_sequence: ContextVar[int] = ContextVar("isthmus_sequence", default=0)
_position: ContextVar[Callable[[], int]] = ContextVar("isthmus_position", default=int)
_OWN = frozenset({"time", "level", "logger", "message", "role", "instance"})
_FORMATS = ("json", "text")


class at_sequence:  # noqa: N801  used as a function; as a generator it would cost a join a microsecond
    """Log lines written inside the block carry this event's sequence."""

    __slots__ = ("_number", "_token")

    def __init__(self, sequence: int) -> None:
        self._number = sequence

    def __enter__(self) -> None:
        self._token = _sequence.set(self._number)

    def __exit__(self, *_: object) -> None:
        _sequence.reset(self._token)


def follow_position(read: Callable[[], int]) -> None:
    """Lines of this task, and of those that it starts from now on, carry ``read()`` (0: none).

    It is asked for each line and must return at once: the last sequence that this role has taken in.
    Several roles in one process have one each, since every task inherits it from the one that began it.
    """
    _position.set(read)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def __init__(self, role: str, instance: str) -> None:
        super().__init__()
        self._base = {"role": role, "instance": instance}
        self._encode = msgspec.json.Encoder(enc_hook=str).encode

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._base,
            **_correlation(),
        }
        line.update({key: value for key, value in _extra(record).items() if key not in _OWN})
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = f"{type(error).__name__}: {error}"
            line["stack"] = self.formatException(record.exc_info)
        return self._encode(line).decode()


class TextFormatter(logging.Formatter):
    """``12:03:04.512 WARNING isthmus.bus  message  trace=… seq=…``; no traceback, only its last line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).astimezone()
        clock = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"
        parts = [f"{clock} {record.levelname:<7} {record.name}  {record.getMessage()}"]
        if record.exc_info and record.exc_info[1] is not None:
            parts.append(f"({type(record.exc_info[1]).__name__}: {record.exc_info[1]})")
        found = {**_correlation(), **_extra(record)}
        if "trace_id" in found:
            parts.append(f"trace={str(found['trace_id'])[:8]}")
        if "sequence" in found:
            parts.append(f"seq={found['sequence']}")
        return "  ".join(parts)


class JournalFormatter(logging.Formatter):
    """The lines of another formatter, each with the priority for systemd's journal: ``<4>``."""

    PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        number = next((number for level, number in self.PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{number}>{line}" for line in self._inner.format(record).split("\n"))


def goes_to_journal(target: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream is the one that systemd has connected to its journal (``JOURNAL_STREAM``)."""
    try:
        found = os.fstat(target.fileno())
    except (OSError, ValueError):
        return False  # closed, or no file at all
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    extra = getattr(record, "isthmus", None)
    return {str(key): value for key, value in extra.items()} if isinstance(extra, Mapping) else {}


def _correlation() -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        found["trace_id"] = f"{context.trace_id:032x}"
        found["span_id"] = f"{context.span_id:016x}"
    sequence = _sequence.get() or _position.get()()
    if sequence:
        found["sequence"] = sequence
    return found


def configure_logging(
    role: str,
    *,
    instance: str = "",
    environ: Mapping[str, str] = os.environ,
    stream: TextIO | None = None,
) -> None:
    """Send all logs of the process to ``stream`` (standard error) in one format.

    ``ISTHMUS_LOG`` is ``json`` or ``text`` (default: text on a terminal, else JSON);
    ``ISTHMUS_LOG_LEVEL`` one of debug, info, warning, error (default info). Raises Usage(usage)
    for anything else. Lines to systemd's journal carry their priority.
    Calling it again replaces the earlier set-up.
    """
    target = stream or sys.stderr
    form = environ.get("ISTHMUS_LOG", "").strip().lower() or ("text" if target.isatty() else "json")
    if form not in _FORMATS:
        raise Usage("usage", f"ISTHMUS_LOG={form} is unknown: json or text")
    level = environ.get("ISTHMUS_LOG_LEVEL", "").strip().upper() or "INFO"
    if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise Usage("usage", f"ISTHMUS_LOG_LEVEL={level.lower()} is unknown: debug, info, warning or error")
    handler = logging.StreamHandler(target)
    formatter = JsonFormatter(role, instance) if form == "json" else TextFormatter()
    handler.setFormatter(JournalFormatter(formatter) if goes_to_journal(target, environ) else formatter)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for noisy in ("opentelemetry", "urllib3", "asyncio", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
