"""What a real llama-server has is reached through the relay, and its answers are what it gave."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.e2e.conftest import INFERENCE_KEY, Served
from tests.harness.caller import request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("served")]

HELLO = [{"role": "user", "content": "hello"}]
SAME: dict[str, Any] = {"model": "tiny", "temperature": 0, "seed": 1, "cache_prompt": False}
# What differs from answer to answer: names, times and speeds, which slot was free, and how much of
# the prompt it had cached.
_VARIABLE = re.compile(
    r'"(?:cache_read_input_tokens|input_tokens|cached_tokens|cache_n|prompt_n)":\s*[0-9]+|'
    r'"(?:id|item_id|created|created_at|completed_at|id_slot|[a-z_]*_ms|[a-z_]*_per_second)":\s*'
    r'(?:"[^"]*"|-?[0-9.e+-]+)'
)

_TIMINGS = re.compile(r',"timings":\{[^{}]*\}')


def direct(served: Served, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
    asked = urllib.request.Request(
        served.llama.url + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {INFERENCE_KEY}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def through_relay(served: Served, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
    headers = {**served.authorization, "X-WAI-Node": "box"}
    data = None if body is None else json.dumps(body).encode()
    with request(served.cluster, path, data, headers) as answer:
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 9}),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "max_tokens": 9, "stream_options": {"include_usage": True}},
        ),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 9, "n": 2}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 5, "logprobs": True}),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 9}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 9}),
        ("/completion", {"prompt": "hello", "n_predict": 9}),
    ],
)
def test_an_answer_is_the_servers_own(
    served: Served, path: str, fields: dict[str, Any], stream: bool
) -> None:
    body = {**SAME, **fields}
    if stream:
        body["stream"] = True
    else:
        body.pop("stream_options", None)
    expected_status, expected = direct(served, "POST", path, body)
    status, text = through_relay(served, path, body)
    told, wanted = (_VARIABLE.sub("", one).split("\n\n") for one in (text, expected))
    if body.get("n"):  # two answers at once, in whichever order they come; which has timings varies
        told, wanted = (sorted(_TIMINGS.sub("", event) for event in one) for one in (told, wanted))
    assert (status, told) == (expected_status, wanted)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "hello world"}),
        ("/detokenize", {"tokens": [40, 41, 42]}),
        ("/apply-template", {"messages": HELLO}),
        ("/v1/embeddings", {"model": "tiny", "input": ["hello", "world"]}),
        ("/v1/messages/count_tokens", {"model": "tiny", "messages": HELLO}),
        ("/v1/responses/input_tokens", {"model": "tiny", "input": "hello"}),
        ("/v1/chat/completions/input_tokens", {"model": "tiny", "messages": HELLO}),
    ],
)
def test_what_reads_and_counts_is_the_servers_own(
    served: Served, path: str, body: dict[str, Any]
) -> None:
    asked = path if "model" in body else f"{path}?model=tiny"
    assert through_relay(served, asked, body) == direct(served, "POST", path, body)


def test_its_properties_are_told_and_no_route_is_offered_that_it_lacks(served: Served) -> None:
    status, text = through_relay(served, "/props?model=tiny", None)
    assert status == 200
    assert json.loads(text)["total_slots"] == 2
    status, text = through_relay(served, "/v1/rerank", {"model": "tiny", "query": "q"})
    assert (status, "through this API" in text) == (404, True)
    status, text = through_relay(served, "/v1/models", None)
    told = next(entry for entry in json.loads(text)["data"] if entry["id"] == "tiny")
    assert told["wai"]["apis"] == ["anthropic", "llama.cpp", "openai"]
