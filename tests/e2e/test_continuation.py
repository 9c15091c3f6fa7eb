"""A node is killed in the middle of an answer, and another goes on, on real llama-servers too."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.llama_server import llama_server

pytestmark = pytest.mark.e2e

TOKENS = 600
KILLED_AFTER = 100
# Greedy, so that two servers with the same model say the same.
GREEDY = {"temperature": 0, "top_k": 1, "seed": 1, "ignore_eos": True, "cache_prompt": False}


@pytest.fixture
def pair(tmp_path: Path, tiny_model: Path) -> Iterator[Cluster]:
    settings = tmp_path / "relay.toml"
    settings.write_text("session_ttl_s = 1.0\n")
    with (
        llama_server(tiny_model, tmp_path) as one,
        llama_server(tiny_model, tmp_path) as other,
        cluster(tmp_path, "--config", str(settings)) as running,
    ):
        running.add_node("one", one.url)
        running.add_node("other", other.url)
        yield running


def test_another_llama_server_goes_on_where_the_first_was(pair: Cluster) -> None:
    headers = {"Authorization": f"Bearer {pair.create_key().secret}", "X-WAI-Continue": "1"}
    body = chat(
        "tiny", stream=True, max_tokens=TOKENS, stream_options={"include_usage": True}, **GREEDY
    )
    with request(pair, "/v1/chat/completions", body, headers) as answer:
        whole, _, _ = read(answer, None)
    with request(pair, "/v1/chat/completions", body, headers) as answer:
        victim = pair.nodes[answer.headers["X-WAI-Node"]].daemon
        text, usage, finish = read(answer, victim.kill)
    assert finish == "length"
    assert usage["completion_tokens"] == pytest.approx(TOKENS, abs=3)
    # Said once, and gone on from; not the same for ever, since its tokens may be cut differently.
    before = whole[: 3 * KILLED_AFTER]
    assert text.startswith(before)
    assert text.count(before) == 1


def read(answer: http.client.HTTPResponse, fault: object) -> tuple[str, dict[str, int], str | None]:
    """Text, usage and finish reason; `fault` strikes after some pieces."""
    usage: dict[str, int] = {}
    text, pieces, finish, done = "", 0, None, False
    for data in events(answer):
        if data == "[DONE]":
            done = True
            continue
        chunk = json.loads(data)
        assert "error" not in chunk, chunk
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            finish = choice.get("finish_reason") or finish
            text += choice["delta"].get("content") or ""
            pieces += 1
        if pieces == KILLED_AFTER and callable(fault):
            fault()
    assert done
    return text, usage, finish
