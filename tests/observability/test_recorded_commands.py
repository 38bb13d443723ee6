"""In a storm a few commands of a group are recorded: their spans name their own events and times."""

from __future__ import annotations

import time

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from controlplane.controller.hooks import AnsweredCommand, DecidedCommand
from controlplane.controller.observability.tracing import TracingObserver
from controlplane.controller.requests import Request
from events.protocol.commands import RemoveNode
from events.telemetry.role import Telemetry

TOOK_S = 0.25


def request(number: int, *, dry_run: bool = False) -> Request:
    command = RemoveNode(node=f"n{number}")
    return Request(command=command, command_id=f"c{number}", actor="operator", received_s=0.0, dry_run=dry_run)


async def test_recorded_commands_among_others_name_their_own_events_and_times() -> None:
    kept = InMemorySpanExporter()
    telemetry = Telemetry.start(
        "controller",
        instance="i",
        cluster="c",
        sink=SimpleSpanProcessor(kept),
        environ={"OTEL_TRACES_SAMPLER": "always_on"},
    )
    events = [2, 2, 0, 3, 1, 2, 1]
    group = [request(number, dry_run=number == 1) for number in range(len(events))]
    observer = TracingObserver(telemetry, "c")
    for number in (3, 5):
        observer.received(group[number])
    before = time.time_ns()
    observer.decided(
        [DecidedCommand(one, 0.0, TOOK_S, count, again=False) for one, count in zip(group, events, strict=True)]
    )
    after = time.time_ns()
    observer.appended([group[n] for n in (0, 3, 4, 5, 6)], first=11, last=19, took_s=0.0)
    observer.answered([AnsweredCommand(one, 1.0, None) for one in group], sequence=19)
    await telemetry.close()

    spans = kept.get_finished_spans()
    found = {
        span.attributes["isthmus.node"]: (
            span.attributes["isthmus.sequence.first"],
            span.attributes["isthmus.sequence.last"],
        )
        for span in spans
        if span.name == "process command.remove-node" and span.attributes
    }
    assert found == {"n3": (13, 15), "n5": (17, 18)}
    decided = [span for span in spans if span.name == "decide remove-node"]
    for place, span in zip((3, 5), decided, strict=True):
        behind_ns = int((len(group) - place - 1) * TOOK_S * 1e9)
        assert before - behind_ns <= (span.end_time or 0) <= after - behind_ns
        assert (span.end_time or 0) - (span.start_time or 0) == int(TOOK_S * 1e9)
