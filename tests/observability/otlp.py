"""A small real OTLP receiver (HTTP, protobuf), as a collector would be: it keeps what it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status


class Span(NamedTuple):
    """One received span, ids as hexadecimal text."""

    trace: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    instance: str
    attributes: dict[str, object]
    links: list[tuple[str, str]]
    failed: bool
    start: int
    end: int


class Receiver:
    """What has arrived so far."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.spans: list[Span] = []
        self.metrics: set[str] = set()
        self._lock = threading.Lock()

    def find(self, name: str, **wanted: str) -> list[Span]:
        """Spans by name, and by trace, parent, service or instance."""
        with self._lock:
            return [
                span
                for span in self.spans
                if span.name == name and all(getattr(span, key) == value for key, value in wanted.items())
            ]

    def take_traces(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            resource = {item.key: _value(item.value) for item in group.resource.attributes}
            for scope in group.scope_spans:
                with self._lock:
                    self.spans.extend(_span(span, resource) for span in scope.spans)

    def take_metrics(self, body: bytes) -> None:
        request = ExportMetricsServiceRequest.FromString(body)
        with self._lock:
            self.metrics.update(
                metric.name
                for group in request.resource_metrics
                for scope in group.scope_metrics
                for metric in scope.metrics
            )


def _value(value) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _span(span: ProtoSpan, resource: dict[str, object]) -> Span:
    return Span(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        kind=ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        service=str(resource.get("service.name")),
        instance=str(resource.get("service.instance.id")),
        attributes={item.key: _value(item.value) for item in span.attributes},
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


@contextmanager
def receiving(host: str = "0.0.0.0", port: int = 0) -> Iterator[Receiver]:
    """Listen until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                receiver.take_traces(body)
            elif self.path == "/v1/metrics":
                receiver.take_metrics(body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer((host, port), Handler)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
