"""From spans to the rows of a waterfall: pure, and the same picture for the terminal and the console.

Children stand under their parent. A span of another trace that links into this one stands under the
span it links to and says so. A span whose parent is not there (dropped, or still under way) stands
at the top level rather than vanish.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from events.telemetry.spans import SpanRecord

DEPTH_MAX = 40


class WaterfallRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row: ``offset_ms`` from the picture's start, ``duration_ms`` long, ``depth`` levels in.

    ``joined`` is ``parent``, ``link`` (another trace, joined by a link) or ``root``.
    """

    depth: int
    joined: str
    offset_ms: float
    duration_ms: float
    span: SpanRecord


class Waterfall(msgspec.Struct, frozen=True, kw_only=True):
    """The whole picture of one trace. ``truncated`` says that the store holds more than is shown."""

    trace_id: str
    start_ns: int = 0
    duration_ms: float = 0.0
    rows: list[WaterfallRow] = []
    services: list[str] = []
    errors: int = 0
    truncated: bool = False


def waterfall(trace_id: str, spans: Sequence[SpanRecord], *, limit: int) -> Waterfall:
    """Arrange the spans. Cycles and broken parents (hostile input) end up at the top level, once each."""
    if not spans:
        return Waterfall(trace_id=trace_id)
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    children: dict[tuple[str, str], list[tuple[str, SpanRecord]]] = {}
    roots: list[SpanRecord] = []
    for span in sorted(spans, key=lambda s: (s.start_ns, s.span_id)):
        parent = (span.trace_id, span.parent_id)
        linked = next(
            ((link.trace_id, link.span_id) for link in span.links if (link.trace_id, link.span_id) in by_id),
            None,
        )
        if span.parent_id and parent in by_id:
            children.setdefault(parent, []).append(("parent", span))
        elif linked is not None and linked[0] != span.trace_id:
            children.setdefault(linked, []).append(("link", span))
        else:
            roots.append(span)
    start = min(span.start_ns for span in spans)
    end = max(span.end_ns for span in spans)
    rows: list[WaterfallRow] = []
    seen: set[tuple[str, str]] = set()

    def place(top: SpanRecord, top_joined: str) -> None:
        stack = [(0, top_joined, top)]
        while stack:
            depth, joined, span = stack.pop()
            key = (span.trace_id, span.span_id)
            if key in seen:
                continue
            seen.add(key)
            rows.append(
                WaterfallRow(
                    depth=min(depth, DEPTH_MAX),
                    joined=joined,
                    offset_ms=(span.start_ns - start) / 1e6,
                    duration_ms=max(0, span.end_ns - span.start_ns) / 1e6,
                    span=span,
                )
            )
            stack.extend((depth + 1, how, child) for how, child in reversed(children.get(key, ())))

    for root in roots:
        place(root, "root")
    for span in spans:  # whatever a cycle kept from every root
        place(span, "root")
    return Waterfall(
        trace_id=trace_id,
        start_ns=start,
        duration_ms=(end - start) / 1e6,
        rows=rows,
        services=sorted({f"{span.service}/{span.instance}" for span in spans}),
        errors=sum(span.status == "ERROR" for span in spans),
        truncated=len(spans) >= limit,
    )
