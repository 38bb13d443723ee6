"""Traces and metrics of every role: one object per role, passed in, never global.

Several roles may live in one process (``isthmus up``, a test with three agents), so each gets a
:class:`Telemetry` of its own with its own resource. OTLP export is switched on by OpenTelemetry's
standard environment variables; with nothing configured and no sink given, spans cost next to nothing
and only the incoming trace context is passed on.

::

    telemetry = Telemetry.start("agent", instance="idc-7", cluster="prod", sink=outbox)
    with telemetry.span("apply", kind=SpanKind.INTERNAL, links=[link(headers)]) as span: ...
    headers = telemetry.inject({})           # W3C traceparent, tracestate
    text = telemetry.prometheus()            # /metrics
    await telemetry.close()

Context rules (OpenTelemetry messaging conventions): one message or one transaction continues its
sender's trace; a batch that mixes traces starts its own and *links* to each; replayed history never
continues an old trace, it links to it and says ``isthmus.replay=true``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import Meter, NoOpMeterProvider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from events.codes.extras import install_line, our_version
from events.errors import IsthmusError, Refused, Usage

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler
    from prometheus_client import CollectorRegistry

    from events.telemetry.sampling import Sampling

__all__ = ["INVALID_SPAN", "Link", "Span", "SpanKind", "Telemetry", "extract", "inject", "link", "mark_error"]

MESSAGING_SYSTEM = "nats"
ON_SERIES = frozenset({"isthmus.cluster", "service.instance.id"})
"""Resource attributes that each Prometheus series carries: whose it is, whatever address was scraped."""
CLOSE_TIMEOUT_S = 2.0
"""How long :meth:`Telemetry.close` may take to hand the last spans to a collector that may be gone."""

_propagator = TraceContextTextMapPropagator()
_EMPTY = otel_context.Context()


def inject(headers: MutableMapping[str, str]) -> MutableMapping[str, str]:
    """Write the current span's ``traceparent`` (and ``tracestate``) into ``headers``; return them."""
    _propagator.inject(headers)
    return headers


def extract(headers: Mapping[str, str] | None) -> SpanContext | None:
    """The span context that a message carries, or None when it carries none or a malformed one."""
    if not headers or "traceparent" not in headers:
        return None
    found = trace.get_current_span(_propagator.extract(headers, context=_EMPTY)).get_span_context()
    return found if found.is_valid else None


def link(
    headers: Mapping[str, str] | None, attributes: Mapping[str, AttributeValue] | None = None
) -> Link | None:
    """A link to the span that wrote a message, for spans that process several."""
    context = extract(headers)
    return None if context is None else Link(context, dict(attributes or {}))


def mark_error(span: Span, error: BaseException) -> None:
    """Set status and code: a refusal is an answer (its code is recorded), anything else is an error."""
    code = error.code if isinstance(error, IsthmusError) else type(error).__name__
    span.set_attribute("error.type", code)
    if isinstance(error, IsthmusError):
        span.set_attribute("isthmus.error.code", error.code)
    if isinstance(error, Refused):
        span.set_attribute("isthmus.refused", True)
    span.set_status(Status(StatusCode.ERROR, f"{code}: {error}"[:400]))


@dataclass(eq=False)
class Telemetry:
    """The tracer, the meter and the ``/metrics`` text of one role; made by :meth:`start` or :meth:`off`."""

    role: str
    instance: str
    tracers: TracerProvider | None = None
    sampling: Sampling | None = None
    meters: MeterProvider | None = None
    registry: CollectorRegistry | None = None

    def __post_init__(self) -> None:
        self.tracing = self.tracers is not None
        """Whether spans go anywhere; callers may skip work that only a recorded span needs."""
        name = f"isthmus.{self.role}"
        self.tracer: trace.Tracer = (self.tracers or NoOpTracerProvider()).get_tracer(name)
        self.meter: Meter = (self.meters or NoOpMeterProvider()).get_meter(name)

    def would_drop(self, traceparent: str) -> bool:
        """Whether a span continuing this trace (empty: beginning one) would surely not be recorded now.

        Costs a fraction of starting one; for paths that see thousands of messages a second.
        """
        if self.tracers is None:
            return True
        if self.sampling is None:
            return False
        if traceparent:
            return traceparent.endswith("0") or (
                self.sampling.continued is not None and self.sampling.continued.spent()
            )
        return self.sampling.root is not None and self.sampling.root.spent()

    @classmethod
    def off(cls, role: str = "none", instance: str = "") -> Telemetry:
        """Neither spans nor metrics; the trace context of others is still passed on."""
        return cls(role, instance)

    @classmethod
    def start(
        cls,
        role: str,
        *,
        instance: str,
        cluster: str = "",
        sink: SpanProcessor | None = None,
        metrics: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> Telemetry:
        """Read the standard variables and start what they ask for.

        ``sink`` receives every finished span (the built-in store's outbox); ``metrics`` keeps a
        registry for :meth:`prometheus`. ``OTEL_SDK_DISABLED=true`` turns all of it off.
        Raises Usage(usage) for an unknown exporter or sampler, or when the OTLP extra is missing.
        """
        if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls.off(role, instance)
        spans_to = _exporter_choice("TRACES", environ)
        metrics_to = _exporter_choice("METRICS", environ)
        if sink is None and spans_to == "none" and not metrics and metrics_to == "none":
            return cls.off(role, instance)
        tracers = sampling = meters = registry = None
        resource = _resource(role, instance, cluster, environ)
        if sink is not None or spans_to != "none":
            from events.telemetry.sampling import choose_sampler

            sampling = choose_sampler(role, environ)
            tracers = _tracer_provider(resource, sampling.sampler, sink, spans_to)
        if metrics or metrics_to != "none":
            meters, registry = _meter_provider(resource, metrics, metrics_to)
        return cls(role, instance, tracers=tracers, sampling=sampling, meters=meters, registry=registry)

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: SpanContext | None = None,
        root: bool = False,
        links: list[Link] | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> Iterator[Span]:
        """A current span for the block. An exception sets its status and code, and goes on.

        ``parent`` is a remote context; ``root`` starts a trace of its own whatever is current.
        """
        if self.tracers is None:
            yield INVALID_SPAN
            return
        if parent is not None:
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent), _EMPTY)
        else:
            context = _EMPTY if root else otel_context.get_current()
        with self.tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            links=links,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                mark_error(span, error)
                raise

    def prometheus(self) -> bytes:
        """The metrics in Prometheus' text format (version 0.0.4); empty without a registry."""
        if self.registry is None:
            return b""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    async def close(self) -> None:
        """Hand over what is buffered, within :data:`CLOSE_TIMEOUT_S`, without blocking the event loop.

        Cancelled, the handing over goes on in its thread.
        """
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """The same for programs without an event loop (the command line)."""
        if self.tracers is not None:
            self.tracers.force_flush(int(CLOSE_TIMEOUT_S * 1000))
            self.tracers.shutdown()
        if self.meters is not None:
            self.meters.shutdown(CLOSE_TIMEOUT_S * 1000)


def _exporter_choice(signal: str, environ: Mapping[str, str]) -> str:
    """``otlp``, ``console`` or ``none``: the standard variable, or otlp when an endpoint is given."""
    name = f"OTEL_{signal}_EXPORTER"
    choice = environ.get(name, "").strip().lower()
    if not choice:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        configured = any(environ.get(endpoint) for endpoint in endpoints)
        return "otlp" if configured else "none"
    if choice not in {"otlp", "console", "none"}:
        raise Usage("usage", f"{name}={choice} is not supported: otlp, console or none")
    return choice


def _resource(role: str, instance: str, cluster: str, environ: Mapping[str, str]) -> Resource:
    from opentelemetry.sdk.resources import Resource

    attributes: dict[str, Any] = {
        "service.name": environ.get("OTEL_SERVICE_NAME") or f"isthmus-{role}",
        "service.namespace": "isthmus",
        "service.instance.id": instance,
        "service.version": our_version(),
    }
    if cluster:
        attributes["isthmus.cluster"] = cluster
    return Resource.create(attributes)


def _otlp(module: str, name: str) -> Any:
    """An exporter of the OTLP extra. Raises Usage(usage) when that is not installed."""
    try:
        return getattr(import_module(f"opentelemetry.exporter.otlp.proto.http.{module}"), name)()
    except ModuleNotFoundError as error:
        raise Usage(
            "usage",
            f"OTLP export needs {error.name!r}, which is not installed: {install_line('otlp')}",
        ) from error


def _tracer_provider(
    resource: Resource, sampler: Sampler, sink: SpanProcessor | None, export: str
) -> TracerProvider:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    if sink is not None:
        provider.add_span_processor(sink)
    if export == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    elif export == "otlp":
        provider.add_span_processor(BatchSpanProcessor(_otlp("trace_exporter", "OTLPSpanExporter")))
    return provider


def _meter_provider(
    resource: Resource, prometheus: bool, export: str
) -> tuple[MeterProvider, CollectorRegistry | None]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        MetricReader,
        PeriodicExportingMetricReader,
    )

    readers: list[MetricReader] = []
    registry: CollectorRegistry | None = None
    if prometheus:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry(auto_describe=False)
        readers.append(
            PrometheusMetricReader(
                registry=registry, scope_info_enabled=False, resource_attribute_filter=ON_SERIES.__contains__
            )
        )
    if export == "console":
        readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter()))
    elif export == "otlp":
        readers.append(PeriodicExportingMetricReader(_otlp("metric_exporter", "OTLPMetricExporter")))
    return MeterProvider(readers, resource=resource, shutdown_on_exit=False), registry
