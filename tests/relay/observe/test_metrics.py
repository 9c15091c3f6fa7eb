"""What is said of requests: figures with bounded labels, and a log line that can't be forged."""

from __future__ import annotations

import json
import logging

import pytest

from wai_cli.output.logs import JsonFormatter
from wai_relay.contracts.records import (
    DiscardingRecorder,
    LimitsState,
    RequestRecord,
    TokenCounts,
    UsageState,
)
from wai_relay.http.edge import EdgeCounters
from wai_relay.observe.access_log import AccessLog
from wai_relay.observe.live import LiveRequests
from wai_relay.observe.metrics import MAX_MODELS, Metrics


def record(model: str = "tiny", **changes: object) -> RequestRecord:
    made = RequestRecord("req_1", 0.0, "POST", "/v1/chat/completions", "key_1", model)
    made.status, made.attempts, made.ttft_ms, made.duration_ms = 200, 1, 30.0, 530.0
    made.tokens = TokenCounts(prompt=7, completion=11, exact=True)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


async def unused(_: object) -> None:
    raise AssertionError("nobody asks")


def text_of(metrics: Metrics) -> list[str]:
    return metrics.text([], LiveRequests(), EdgeCounters()).splitlines()


def test_a_request_is_counted_once_in_every_bucket_above_it() -> None:
    metrics = Metrics(DiscardingRecorder())
    metrics.finish(record())
    lines = text_of(metrics)
    name = "gen_ai_server_time_to_first_token_seconds"
    model = 'gen_ai_request_model="tiny"'
    assert f'{name}_bucket{{{model},le="0.02"}} 0' in lines
    assert f'{name}_bucket{{{model},le="0.04"}} 1' in lines
    assert f'{name}_bucket{{{model},le="+Inf"}} 1' in lines
    assert f"{name}_count{{{model}}} 1" in lines
    assert f'wai_tokens_total{{{model},gen_ai_token_type="output"}} 11' in lines
    assert f'wai_requests_total{{{model},status="200"}} 1' in lines


def test_callers_cannot_make_up_labels_and_no_key_is_one() -> None:
    metrics = Metrics(DiscardingRecorder())
    for number in range(1000):
        metrics.finish(record(f"made-up-{number}", attempts=0, status=404, fault="model_not_found"))
    assert len(text_of(metrics)) < 60
    for number in range(1000):
        metrics.finish(record(f"served-{number}"))
    lines = text_of(metrics)
    named = {line for line in lines if line.startswith("wai_requests_total")}
    assert len(named) <= MAX_MODELS + 2
    assert not any("key_1" in line for line in lines)


def test_a_models_name_cannot_end_its_label() -> None:
    metrics = Metrics(DiscardingRecorder())
    metrics.finish(record('a"} 1\nforged 1 \\'))
    assert not any(line.startswith("forged") for line in text_of(metrics))


def test_a_certificate_that_nobody_renews_can_be_alerted_on() -> None:
    name = "wai_certificate_end_timestamp_seconds"
    metrics = Metrics(DiscardingRecorder())
    page = metrics.text([], LiveRequests(), EdgeCounters(), certificate_ends=1800000000.0)
    assert f"{name} 1800000000" in page.splitlines()
    assert name not in metrics.text([], LiveRequests(), EdgeCounters())  # behind a proxy


def test_the_access_log_has_one_line_a_request_whatever_a_caller_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "wai.access"):
        AccessLog(DiscardingRecorder()).finish(record("x\nforged status=200"))
    (entry,) = caplog.records
    text = entry.getMessage()
    assert "\n" not in text
    assert r"model=x\nforged\x20status=200 " in text
    line = json.loads(JsonFormatter().format(entry))
    assert line["request_id"] == "req_1"
    assert line["level"] == "info"
    assert line["completion_tokens"] == 11


def test_who_judged_requests_of_keys_with_limits_is_counted() -> None:
    metrics = Metrics(DiscardingRecorder())
    limits = LimitsState(here=90, there=8, refused=2, unanswered=1, round_trips=12, away_since=9.0)
    lines = metrics.text([], LiveRequests(), EdgeCounters(), limits=limits).splitlines()
    assert 'wai_limited_requests_total{judged="here"} 90' in lines
    assert 'wai_limited_requests_total{judged="unanswered"} 1' in lines
    assert "wai_limits_round_trips_total 12" in lines
    assert "wai_limits_away 1" in lines


def test_usage_that_is_not_on_disk_is_counted() -> None:
    metrics = Metrics(DiscardingRecorder())
    state = UsageState(3, 1, behind=True)
    lines = metrics.text([], LiveRequests(), EdgeCounters(), usage=state).splitlines()
    assert "wai_usage_unwritten_requests 3" in lines
    assert "wai_usage_lost_requests_total 1" in lines
