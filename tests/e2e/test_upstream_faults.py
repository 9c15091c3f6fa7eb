"""An upstream that refuses, dies or talks nonsense: a clear error, never a clean-looking end."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Served
from tests.harness.caller import chat, events, request
from tests.harness.cluster import cluster
from tests.harness.llama_server import llama_server

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("served")]


@pytest.mark.parametrize("model", ["dies-before-its-head", "speaks-garbage", "sends-a-huge-head"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_before_the_first_byte_it_is_a_502(served: Served, model: str, stream: bool) -> None:
    with request(
        served.cluster, "/v1/chat/completions", chat(model, stream=stream), served.authorization
    ) as response:
        assert response.status == 502
        error = json.loads(response.read())["error"]
    assert error["type"] == "server_error"
    assert error["code"] in {"upstream_broke", "upstream_unreachable"}


@pytest.mark.parametrize("model", ["dies-mid-stream", "ends-without-an-end", "garbles-a-chunk"])
def test_after_the_first_byte_it_is_an_error_event(served: Served, model: str) -> None:
    with request(
        served.cluster, "/v1/chat/completions", chat(model, stream=True), served.authorization
    ) as response:
        assert response.status == 200
        got = list(events(response))
    assert "word0" in got[0]
    assert "[DONE]" not in got
    assert json.loads(got[-1])["error"]["code"] == "upstream_broke"


def test_an_upstreams_own_error_is_passed_on(served: Served) -> None:
    with request(
        served.cluster, "/v1/chat/completions", chat("fails"), served.authorization
    ) as response:
        assert response.status == 500
        assert "out of memory" in json.loads(response.read())["error"]["message"]


def test_the_node_serves_on_after_all_that(served: Served) -> None:
    for model in ("dies-mid-stream", "speaks-garbage", "answers"):
        with request(
            served.cluster, "/v1/chat/completions", chat(model), served.authorization
        ) as response:
            try:
                response.read()
            except http.client.IncompleteRead:
                continue
    assert response.status == 200


def test_a_llama_server_that_is_killed(tmp_path: Path, tiny_model: Path) -> None:
    body = chat("tiny", stream=True, max_tokens=1900)
    with (
        cluster(tmp_path) as running,
        llama_server(tiny_model, tmp_path) as llama,
    ):
        running.add_node("box", llama.url)
        headers = {"x-api-key": running.create_key().secret}
        with (
            request(running, "/v1/messages", body, headers) as anthropic,
            request(running, "/v1/chat/completions", body, headers) as openai,
        ):
            assert next(events(anthropic))
            assert next(events(openai))
            llama.daemon.kill()
            text = anthropic.read().decode()
            assert "event: error\n" in text
            assert json.loads(text.rstrip().rsplit("data: ", 1)[1])["type"] == "error"
            *_, last = events(openai)
            assert json.loads(last)["error"]["code"] == "upstream_broke"
        with request(running, "/v1/chat/completions", body, headers) as refused:
            assert refused.status in {404, 502, 503}
            assert json.loads(refused.read())["error"]["message"]
        assert running.get("/healthz") == 200
