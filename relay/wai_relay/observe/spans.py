"""A span for each request, sent to an OpenTelemetry collector: for who has one, and asks for it.

Needs the extra `otel`, which is imported only where `otlp_endpoint` is set. A span is made
when its request is over, with the attributes of OpenTelemetry's conventions for generative AI,
below the caller's span if it sent a `traceparent`; that one goes on to the inference server as it
came, whose span is then beside ours. No prompt, no answer and no key is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wai_protocol.errors import RequestError
from wai_relay.contracts.records import Recorder, RequestRecord
from wai_transport.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXPORT_TIMEOUT_S: Final = 5.0
"""What a stopping relay waits at most for a collector that does not answer."""
_NS: Final = 1_000_000_000

Attributes = dict[str, str | int | float]


class Spans:
    """A `Recorder` that makes spans and hands on. `close` sends what waits, and may block."""

    def __init__(self, provider: TracerProvider, following: Recorder) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._following = following
        self._tracer = provider.get_tracer("wai.relay", VERSION)
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._propagator = TraceContextTextMapPropagator()

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        self._following.finish(record)
        operation = record.operation
        span = self._tracer.start_span(
            f"{operation} {record.model}" if operation and record.model else record.method,
            context=self._propagator.extract({"traceparent": record.traceparent}),
            kind=self._kind,
            attributes=attributes_of(record),
            start_time=int(record.started_at * _NS),
        )
        if record.failed:
            span.set_status(self._failed)
        span.end(int((record.started_at + record.duration_ms / 1000.0) * _NS))

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        self._provider.shutdown()


def spans_to(endpoint: str, following: Recorder) -> Spans:
    """Spans for the collector at `endpoint` (OTLP over HTTP, as `http://127.0.0.1:4318/v1/traces`).

    Raises `RequestError` where the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RequestError(
            "otlp_endpoint needs OpenTelemetry: pip install opentelemetry-sdk"
            " opentelemetry-exporter-otlp-proto-http beside this relay, or leave it out"
        ) from error
    resource = Resource.create({"service.name": "wai-relay", "service.version": VERSION})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Spans(provider, following)


def attributes_of(record: RequestRecord) -> Attributes:
    """By the conventions' names where there are some, else ours (`wai.`)."""
    found: Attributes = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "gen_ai.operation.name": record.operation,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.served_model,
        "gen_ai.usage.input_tokens": record.tokens.prompt,
        "gen_ai.usage.output_tokens": record.tokens.completion,
        "error.type": record.fault,
        "wai.request_id": record.request_id,
        "wai.node": record.node,
        "wai.queue_ms": record.queue_ms,
        "wai.attempts": record.attempts,
    }
    if record.ttft_ms is not None:
        found["wai.ttft_ms"] = record.ttft_ms
    return {name: value for name, value in found.items() if value != ""}
