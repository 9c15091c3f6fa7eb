"""Anthropic's and OpenAI's own SDKs, against models whose servers have chat completions only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import INFERENCE_KEY, Served
from tests.harness.caller import request
from tests.harness.chat_only import chat_only
from tests.harness.cluster import ApiKey, Cluster, cluster, wai
from tests.harness.openai_service import KEY, MODEL, OpenAiService, openai_service
from tests.harness.processes import wait_until

if TYPE_CHECKING:  # each takes seconds to import: not for every worker of the tests
    import anthropic

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("served")]


@dataclass(frozen=True, slots=True)
class Cloud:
    cluster: Cluster
    service: OpenAiService
    key: ApiKey


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("translation")
    with openai_service(folder) as service:
        (folder / "cloud.key").write_text(KEY + "\n")
        settings = folder / "relay.toml"
        settings.write_text(
            f"""
[[providers]]
name = "cloud"
base_url = "{service.base_url}"
key_file = "{folder / "cloud.key"}"
ca_file = "{service.ca_file}"
[[providers.models]]
id = "chat"
name = "{MODEL}"
input_price = 1.0
output_price = 10.0
"""
        )
        with cluster(folder, "--config", str(settings)) as running:
            yield Cloud(running, service, running.create_key())


def test_anthropic_over_a_llama_server_whose_messages_are_hidden(served: Served) -> None:
    import anthropic

    def said(client: anthropic.Anthropic, node: str) -> anthropic.types.Message:
        with client.messages.stream(
            model="tiny",
            max_tokens=12,
            extra_body={"temperature": 0},
            system=[{"type": "text", "text": "Be brief."}],
            messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            extra_headers={"X-WAI-Node": node},
        ) as stream:
            translated = stream.response.headers.get("x-wai-translated")
            assert (translated is not None) == (node == "plain")
            return stream.get_final_message()

    http = anthropic.DefaultHttpxClient(verify=served.cluster.tls())
    with chat_only(served.llama.url, INFERENCE_KEY) as url:
        node = served.cluster.add_node("plain", url)
        with anthropic.Anthropic(
            base_url=served.cluster.url, api_key=served.key.secret, http_client=http, max_retries=0
        ) as client:
            native, translated = said(client, "box"), said(client, "plain")
        node.daemon.stop()
        wai("node", "remove", "plain", "--data", served.cluster.data)  # other tests have `tiny` too
    assert translated.content == native.content
    assert translated.stop_reason == native.stop_reason == "max_tokens"
    assert translated.usage.output_tokens == native.usage.output_tokens == 12


def test_anthropic_over_a_provider(cloud: Cloud) -> None:
    import anthropic

    http = anthropic.DefaultHttpxClient(verify=cloud.cluster.tls())
    with (
        anthropic.Anthropic(
            base_url=cloud.cluster.url, api_key=cloud.key.secret, http_client=http, max_retries=0
        ) as client,
        client.messages.stream(
            model="chat",
            max_tokens=12,
            system="Be brief.",
            messages=[{"role": "user", "content": "hello"}],
            tools=[{"name": "ls", "input_schema": {"type": "object"}}],
        ) as stream,
    ):
        assert "".join(stream.text_stream) == "From the cloud"
        message = stream.get_final_message()
        assert stream.response.headers["x-wai-translated"] == "/v1/chat/completions"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (600, 400)
    assert (usage.output_tokens, message.stop_reason) == (200, "end_turn")
    path, headers, body = cloud.service.seen[-1]
    assert (path, body["model"]) == ("/v1/chat/completions", MODEL)
    assert cloud.key.secret not in json.dumps(headers)

    def counted() -> bool:
        rows = cloud.cluster.usage("node")
        return any(row["cost"] == pytest.approx(0.003) for row in rows)

    wait_until(counted, "the cost does not arrive")


def test_responses_over_a_provider(cloud: Cloud) -> None:
    import openai

    http = openai.DefaultHttpxClient(verify=cloud.cluster.tls())
    with openai.OpenAI(
        base_url=cloud.cluster.base_url, api_key=cloud.key.secret, http_client=http, max_retries=0
    ) as client:
        for _ in range(2):  # the first one finds out that there are no responses
            answer = client.responses.create(model="chat", input="hello")
            assert answer.output_text == "From the cloud"
        with client.responses.stream(model="chat", input="hello") as stream:
            assert [event.sequence_number for event in stream][-1] > 5
            assert stream.get_final_response().output_text == "From the cloud"
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            client.responses.create(model="chat", input="x", previous_response_id="resp_1")
    asked = [path for path, _, _ in cloud.service.seen]
    assert asked.count("/v1/responses") == 1


def test_ollama_over_a_provider(cloud: Cloud) -> None:
    headers = {"Authorization": f"Bearer {cloud.key.secret}"}
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
    with request(cloud.cluster, "/api/chat", json.dumps(body).encode(), headers) as answer:
        lines = [json.loads(line) for line in answer.read().splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "From the cloud"
    assert (lines[-1]["done"], lines[-1]["eval_count"]) == (True, 200)
