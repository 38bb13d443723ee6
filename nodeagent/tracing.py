"""The spans of an agent: what it received, applied, and wrote to the kernel, the firewall and the CNI file.

A batch that is one transaction continues the trace of its command; one that mixes transactions
starts a trace of its own and links to each. History that the agent catches up on never continues an
old trace: it links to it and says ``isthmus.replay``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from events import subjects
from events.codec import StoredMessage
from events.telemetry.role import MESSAGING_SYSTEM, Telemetry, extract, link
from nodeagent.netlink.socket import KernelRefusal

LINKS_MAX = 64


@contextmanager
def processing(
    telemetry: Telemetry, cluster: str, node: str, messages: Sequence[StoredMessage], *, live: bool
) -> Iterator[Span]:
    """The span of one batch read from the log, from its arrival until it is handed to the kernel."""
    if not telemetry.tracing:
        yield trace.INVALID_SPAN
        return
    stream = subjects.stream(cluster)
    attributes: dict[str, AttributeValue] = {
        "messaging.system": MESSAGING_SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": stream,
        "messaging.batch.message_count": len(messages),
        "isthmus.node": node,
        "isthmus.sequence.first": messages[0].sequence,
        "isthmus.sequence.last": messages[-1].sequence,
    }
    parent: SpanContext | None = None
    links: list[Link] = []
    if live and len({message.headers.get("traceparent", "") for message in messages}) == 1:
        parent = extract(messages[0].headers)
    if parent is None:
        seen: set[str] = set()
        for message in messages:
            written = message.headers.get("traceparent", "")
            found = (
                link(message.headers, {"isthmus.sequence": message.sequence}) if written not in seen else None
            )
            seen.add(written)
            if found is not None and len(links) < LINKS_MAX:
                links.append(found)
    if not live:
        attributes["isthmus.replay"] = True
    with telemetry.span(
        f"process {stream}",
        kind=SpanKind.CONSUMER,
        parent=parent,
        root=parent is None,
        links=links,
        attributes=attributes,
    ) as span:
        yield span


@contextmanager
def receiving(telemetry: Telemetry, cluster: str, count: int) -> Iterator[Span]:
    """Hash chain checked, events folded, remembered in the cache."""
    with telemetry.span(
        f"receive {subjects.stream(cluster)}",
        kind=SpanKind.CLIENT,
        attributes={
            "messaging.system": MESSAGING_SYSTEM,
            "messaging.operation.name": "receive",
            "messaging.operation.type": "receive",
            "messaging.destination.name": subjects.stream(cluster),
            "messaging.batch.message_count": count,
        },
    ) as span:
        yield span


def mark_refused(span: Span, refusals: Sequence[KernelRefusal]) -> None:
    """How many rows the kernel refused, and the first of them as the span's status."""
    span.set_attribute("isthmus.netlink.refused", len(refusals))
    if refusals:
        span.set_status(Status(StatusCode.ERROR, f"the kernel refused {len(refusals)}: {refusals[0]}"[:400]))


class Causes:
    """Which traces led to work that is done later, by another task: one becomes the parent, several links."""

    def __init__(self) -> None:
        self._contexts: dict[int, SpanContext] = {}

    def note(self) -> None:
        """The span that is current now is a cause."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid and context.trace_flags.sampled and len(self._contexts) < LINKS_MAX:
            self._contexts[context.span_id] = context

    def take(self) -> tuple[SpanContext | None, list[Link]]:
        """The first cause as a parent when all are of one trace, else all as links; then there are none."""
        contexts = list(self._contexts.values())
        self._contexts.clear()
        if len({context.trace_id for context in contexts}) == 1:
            return contexts[0], []
        return None, [Link(context) for context in contexts]
