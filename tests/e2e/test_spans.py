"""A relay sends a collector a span for each request, below the caller's own."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import cluster
from tests.harness.odd_upstream import MODELS, odd_upstream

pytestmark = pytest.mark.e2e
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

TRACE: Final = "0af7651916cd43dd8448eb211c80319c"
PARENT: Final = "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An address to send spans to, and what came."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            zipped = self.headers.get("content-encoding") == "gzip"
            got.append(gzip.decompress(body) if zipped else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """The test looks at `got`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def spans_of(bodies: list[bytes]) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return [
        span
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_a_request_is_a_span_below_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector() as (endpoint, got), odd_upstream() as upstream:
        monkeypatch.setenv("WAI_RELAY_OTLP_ENDPOINT", endpoint)
        with cluster(tmp_path) as running:
            running.add_node("box", upstream.url, models=len(MODELS))
            headers = {
                "Authorization": f"Bearer {running.create_key().secret}",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
            }
            for model, status in (("answers", 200), ("nobody's", 404)):
                with request(running, "/v1/chat/completions", chat(model), headers) as answer:
                    answer.read()
                    assert answer.status == status
            assert any(f"00-{TRACE}-{PARENT}-01" in head.values() for head in upstream.seen.heads)
            assert running.relay.stop() == 0
        spans = {span.name: span for span in spans_of(got)}
        assert set(spans) == {"chat answers", "chat nobody's"}
        span = spans["chat answers"]
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert span.end_time_unix_nano > span.start_time_unix_nano
        said = {one.key: one.value for one in span.attributes}
        assert said["gen_ai.request.model"].string_value == "answers"
        assert said["wai.node"].string_value == "box"
        assert said["http.response.status_code"].int_value == 200
        refused = {one.key: one.value for one in spans["chat nobody's"].attributes}
        assert refused["error.type"].string_value == "model_not_found"
        assert spans["chat nobody's"].status.code == 2  # an error, by OTLP
