"""A running relay's metrics and log lines, as Prometheus and a log shipper see them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.processes import wait_until
from wai_protocol.surface import headers_for_upstream

pytestmark = pytest.mark.e2e


def scrape(running: Cluster, token: str) -> str:
    asked = urllib.request.Request(
        f"{running.url}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(asked, timeout=10, context=running.tls()) as answer:
        text: bytes = answer.read()
        return text.decode()


def test_metrics_are_for_who_has_a_token_and_each_request_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAI_RELAY_METRICS_TOKEN", "for-prometheus")
    with cluster(tmp_path, "--log-format", "json") as running:
        key = running.create_key()
        assert running.get("/metrics") == 401
        with pytest.raises(urllib.error.HTTPError) as refused:
            scrape(running, key.secret)
        refused.value.close()
        assert running.get("/v1/models") == 401
        for token in ("for-prometheus", (running.data / "admin.token").read_text().strip()):
            text = scrape(running, token)
            assert 'wai_faults_total{error_type="missing_api_key"} 1\n' in text
            assert key.secret not in text

        def access_lines() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in running.relay.output().splitlines()]
            return [line for line in lines if line["logger"] == "wai.access"]

        wait_until(lambda: bool(access_lines()), "no line in the access log")
        (access,) = access_lines()
        assert access["request_id"].startswith("req_")
        assert access["status"] == 401


def test_a_callers_trace_goes_on_at_the_upstream() -> None:
    trace = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert headers_for_upstream([trace, (b"authorization", b"x")]) == [trace]
