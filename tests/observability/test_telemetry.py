"""Telemetry's set-up: samplers, spans that never hold anything up, logs, the metrics endpoint."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import httpx
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from controlplane.controller.observability.span_intake import SpanIntake
from controlplane.controller.observability.span_store import SpanStore
from events.errors import Refused, Unavailable, Usage
from events.telemetry.http import serve_metrics, serve_where
from events.telemetry.logs import at_sequence, configure_logging, follow_position
from events.telemetry.role import Telemetry, extract, inject
from events.telemetry.sampling import RateLimited, choose_sampler
from events.telemetry.spans import (
    BATCH_LIMIT,
    QUEUE_LIMIT,
    REPORTERS,
    Outbox,
    SpanRecord,
    chosen,
    decode_spans,
    encode_spans,
)

ALL = {"OTEL_TRACES_SAMPLER": "always_on"}
REMOTE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def started(outbox: Outbox | None = None, environ=ALL, **options) -> tuple[Telemetry, Outbox]:
    box = outbox or Outbox()
    return Telemetry.start("agent", instance="n1", cluster="prod", sink=box, environ=environ, **options), box


def test_the_context_travels_in_headers():
    telemetry, box = started()
    with telemetry.span("a", kind=SpanKind.CLIENT):
        headers = dict(inject({"x": "y"}))
    with telemetry.span("b", parent=extract(headers)):
        pass
    first, second = box.take()
    assert headers["x"] == "y"
    assert (second.trace_id, second.parent_id) == (first.trace_id, first.span_id)
    assert (first.service, first.instance, first.kind) == ("isthmus-agent", "n1", "CLIENT")


@pytest.mark.parametrize("bad", ["", "x", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_context_is_no_context(bad):
    assert extract({"traceparent": bad}) is None


def test_a_refusal_sets_status_and_code_and_goes_on():
    telemetry, box = started()
    with pytest.raises(Refused), telemetry.span("a"):
        raise Refused("no_free_range", "nothing left")
    (record,) = box.take()
    assert record.status == StatusCode.ERROR.name
    assert record.attributes["isthmus.error.code"] == "no_free_range"
    assert record.attributes["isthmus.refused"] is True
    assert "nothing left" in record.message


def test_without_configuration_nothing_is_started_and_others_contexts_pass_through():
    telemetry = Telemetry.start("agent", instance="n1", environ={})
    assert not telemetry.tracing
    assert telemetry.prometheus() == b""
    with telemetry.span("a", parent=extract(REMOTE)) as span:
        assert not span.is_recording()


def test_the_standard_switch_turns_everything_off():
    telemetry, box = started(environ={**ALL, "OTEL_SDK_DISABLED": "true"}, metrics=True)
    with telemetry.span("a"):
        pass
    assert box.take() == []
    assert telemetry.prometheus() == b""


def test_the_rate_limit_gives_a_burst_and_then_a_trickle():
    now = [0.0]
    sampler = RateLimited(10, clock=lambda: now[0])

    def taken(count: int) -> int:
        return sum(sampler.should_sample(None, 1, "a").decision.is_sampled() for _ in range(count))

    assert taken(100) == 10
    assert sampler.spent()
    now[0] = 0.35
    assert not sampler.spent()
    assert taken(100) == 3
    now[0] = 100.0
    assert taken(100) == 10


def test_the_gate_agrees_with_the_sampler():
    telemetry, box = started(
        environ={"OTEL_TRACES_SAMPLER": "parentbased_ratelimited", "OTEL_TRACES_SAMPLER_ARG": "1"}
    )
    assert not telemetry.would_drop("")
    for _ in range(3):
        with telemetry.span("a"):
            pass
    assert telemetry.would_drop("")
    assert len(box.take()) == 1
    assert not telemetry.would_drop(REMOTE["traceparent"])
    assert telemetry.would_drop(REMOTE["traceparent"][:-2] + "00")


@pytest.mark.parametrize(
    ("name", "argument", "recorded"),
    [
        ("always_on", "", 100), ("always_off", "", 0), ("parentbased_always_on", "", 100),
        ("parentbased_always_off", "", 0), ("traceidratio", "0", 0), ("parentbased_traceidratio", "1", 100),
        ("ratelimited", "7", 7), ("parentbased_ratelimited", "5", 5),
    ],
)  # fmt: skip
def test_each_sampler_records_what_it_says(name, argument, recorded):
    telemetry, box = started(environ={"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument})
    for _ in range(100):
        with telemetry.span("a", attributes={"kept": 1}):
            pass
    records = box.take()
    assert len(records) == recorded
    assert all(record.attributes["kept"] == 1 for record in records)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_SAMPLER": "sometimes"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "much"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
def test_a_wrong_variable_is_named(environ):
    with pytest.raises(Usage, match="OTEL_TRACES"):
        started(environ=environ)


def test_the_command_line_records_every_trace():
    assert "AlwaysOn" in choose_sampler("cli", {}).sampler.get_description()


def test_about_the_right_number_of_agents_reports_each_trace_and_not_always_the_same():
    crews = [{n for n in range(10_000) if chosen(trace, f"n{n}", 10_000)} for trace in range(1, 21)]
    assert all(REPORTERS / 3 < len(crew) < REPORTERS * 3 for crew in crews)
    assert len(set().union(*crews)) > 15 * REPORTERS / 2
    assert all(chosen(1, f"n{n}", REPORTERS) for n in range(REPORTERS))


def test_errors_are_reported_by_everybody():
    box = Outbox(instance="n1", population=lambda: 1_000_000)
    telemetry, _ = started(box)
    for _ in range(50):
        with telemetry.span("fine"):
            pass
    with pytest.raises(OSError, match="x"), telemetry.span("broken"):
        raise OSError("x")
    assert [record.name for record in box.take()] == ["broken"]


async def test_the_outbox_is_bounded_and_never_waits():
    telemetry, box = started()
    for _ in range(QUEUE_LIMIT + 100):
        with telemetry.span("a"):
            pass
    assert box.dropped == 100
    assert len(box.take()) == BATCH_LIMIT


async def test_the_outbox_survives_a_broken_way_out_and_ends_when_cancelled():
    telemetry, box = started()
    tried = asyncio.Event()

    async def broken(_: object) -> None:
        tried.set()
        raise OSError("no bus")

    task = asyncio.create_task(box.run(broken))
    with telemetry.span("a"):
        pass
    await asyncio.wait_for(tried.wait(), 60)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=3)
    assert task in done
    assert box.dropped == 1


async def test_what_is_left_is_shipped_at_the_end():
    telemetry, box = started()
    shipped: list[SpanRecord] = []

    async def ship(batch) -> None:
        shipped.extend(batch)

    task = asyncio.create_task(box.run(ship))
    await asyncio.sleep(0)
    for _ in range(300):
        with telemetry.span("a"):
            pass
    task.cancel()
    await asyncio.wait({task}, timeout=3)
    assert len(shipped) == 300


def record(**more) -> SpanRecord:
    values = {
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "name": "x",
        "service": "isthmus-controller",
        "start_ns": 1,
        "end_ns": 2,
    }
    return SpanRecord(**{**values, **more})


def test_records_survive_the_wire():
    records = [record(attributes={"a": [1, "b"], "c": True}), record(span_id="c" * 16)]
    assert decode_spans(encode_spans(records)) == records


async def test_spans_are_filed_under_the_node_that_the_subject_names():
    async with SpanStore.open() as store:
        intake = SpanIntake(None, "prod", store)
        intake.take("isthmus.prod.spans.idc-1_example", encode_spans([record(instance="somebody-else")]))
        await intake.close()
        (kept,) = await store.trace("a" * 32)
        assert (kept.service, kept.instance) == ("isthmus-agent", "idc-1.example")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[1]", b"\xff\xfe", b'[{"trace_id":"x"}]', b"[" * 5000,
        encode_spans([record(trace_id="../../etc")]), encode_spans([record(start_ns=-1)]),
        encode_spans([record(start_ns=5, end_ns=4)]), encode_spans([record(end_ns=2**63)]), b" " * 600_000,
    ],
)  # fmt: skip
async def test_hostile_spans_are_counted_and_dropped(body):
    async with SpanStore.open() as store:
        intake = SpanIntake(None, "prod", store)
        intake.take("isthmus.prod.spans.n1", body)
        await intake.close()
        assert intake.refused >= 1
        assert store.count == 0


async def test_a_flood_from_one_node_leaves_room_for_others():
    async with SpanStore.open() as store:
        intake = SpanIntake(None, "prod", store)
        for number in range(100):
            flood = [record(span_id=f"{number * 128 + i:016x}") for i in range(128)]
            intake.take("isthmus.prod.spans.noisy", encode_spans(flood))
        intake.take("isthmus.prod.spans.quiet", encode_spans([record(trace_id="c" * 32)]))
        await intake.close()
        assert len(await store.trace("c" * 32)) == 1
        assert store.count < 400


def fail(log: logging.Logger) -> None:
    try:
        int("bad")
    except ValueError:
        log.exception("failed")


def logged(environ, write) -> str:
    stream = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        configure_logging("agent", instance="n1", environ=environ, stream=stream)
        write(logging.getLogger("isthmus.test"))
    finally:
        root.handlers[:], root.level = before
    return stream.getvalue()


def test_a_log_line_carries_trace_and_sequence():
    telemetry, box = started()

    def write(log: logging.Logger) -> None:
        with telemetry.span("a"), at_sequence(42):
            log.warning("hello %s", "there", extra={"isthmus": {"peer": "x"}})
            fail(log)

    first, second = (json.loads(line) for line in logged({"ISTHMUS_LOG": "json"}, write).splitlines())
    assert first["message"] == "hello there"
    assert (first["role"], first["instance"], first["level"], first["sequence"]) == (
        "agent",
        "n1",
        "warning",
        42,
    )
    assert first["peer"] == "x"
    assert first["trace_id"] == box.take()[0].trace_id
    assert second["error"].startswith("ValueError: invalid literal")
    assert "Traceback" in second["stack"]


async def test_a_line_outside_of_any_event_carries_the_last_one_that_its_role_took_in():
    async def role(log: logging.Logger, name: str, sequence: int) -> None:
        follow_position(lambda: sequence)
        await asyncio.create_task(later(log, name))

    async def later(log: logging.Logger, name: str) -> None:
        log.info(name)
        log.info(name, extra={"isthmus": {"sequence": 7, "level": "made up"}})

    def write(log: logging.Logger) -> None:
        with asyncio.Runner() as runner:
            runner.run(both(log))

    async def both(log: logging.Logger) -> None:
        await asyncio.gather(role(log, "a", 3), role(log, "b", 5))
        log.info("neither")

    text = await asyncio.to_thread(logged, {"ISTHMUS_LOG": "json"}, write)
    lines = [json.loads(line) for line in text.splitlines() if "isthmus.test" in line]
    told = sorted((line["message"], line.get("sequence", 0)) for line in lines)
    assert told == [
        ("a", 3), ("a", 7), ("b", 5), ("b", 7), ("neither", 0),
    ]  # fmt: skip
    assert {line["level"] for line in lines} == {"info"}


def test_text_logs_hold_one_line_per_record_and_no_traceback():
    def write(log: logging.Logger) -> None:
        fail(log)

    text = logged({"ISTHMUS_LOG": "text"}, write)
    assert text.count("\n") == 1
    assert "ValueError: invalid literal" in text


@pytest.mark.parametrize("environ", [{"ISTHMUS_LOG": "xml"}, {"ISTHMUS_LOG_LEVEL": "loud"}])
def test_a_wrong_log_setting_is_named(environ):
    with pytest.raises(Usage, match="ISTHMUS_LOG"):
        logged(environ, lambda log: None)


async def test_the_endpoint_serves_metrics_and_health_and_nothing_else():
    telemetry, _ = started(metrics=True)
    telemetry.meter.create_counter("isthmus.test.things").add(3, {"kind": "a"})
    reason = ""
    async with serve_metrics(telemetry.prometheus, healthy=lambda: reason) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            metrics = await client.get("/metrics")
            assert (
                'isthmus_test_things_total{isthmus_cluster="prod",kind="a",service_instance_id="n1"} 3.0'
                in metrics.text
            )
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert (await client.get("/healthz")).status_code == 200
            reason = "the kernel disagrees"
            assert (await client.get("/healthz")).status_code == 503
            assert (await client.get("/etc/passwd")).status_code == 404
            assert (await client.post("/metrics", content=b"x" * 100_000)).status_code == 405
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /" + b"x" * 100_000)
        assert await reader.read() == b""
        writer.close()


async def test_a_taken_port_is_worth_a_warning_not_a_stop():
    async with serve_metrics(lambda: b"") as port:
        with pytest.raises(Unavailable, match=str(port)):
            async with serve_metrics(lambda: b"", port=port):
                pass
        async with serve_where(lambda: b"", f"127.0.0.1:{port}") as other:
            assert other == 0
    async with serve_where(lambda: b"", "off") as none:
        assert none == 0
    with pytest.raises(Usage, match="HOST:PORT"):
        async with serve_where(lambda: b"", "here"):
            pass
