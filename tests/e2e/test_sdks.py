"""What apps use to call a model, unchanged but for base URL and key, through the whole path."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Served
from tests.harness import npm
from tests.harness.caller import chat
from tests.harness.real import require_real

if TYPE_CHECKING:  # each takes seconds to import: not for every worker of the tests
    import openai

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("served")]

NPM_SCRIPT = Path(__file__).parent / "npm" / "chat.mjs"


@pytest.fixture(params=["http/1.1", "h2"])
def sdk(request: pytest.FixtureRequest, served: Served) -> Iterator[openai.OpenAI]:
    import openai

    http = openai.DefaultHttpxClient(verify=served.cluster.tls(), http2=request.param == "h2")
    with openai.OpenAI(
        base_url=served.cluster.base_url,
        api_key=served.key.secret,
        http_client=http,
        max_retries=0,
    ) as client:
        yield client


def test_openai_python(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hé 👋"}], max_tokens=20
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20


def test_openai_python_streaming_says_the_same(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=100,
        temperature=0,
    )
    stream = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=100,
        temperature=0,
        stream=True,
    )
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks), "a usage chunk that was not asked for"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_openai_python_gets_the_usage_it_asks_for(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = [chunk.usage for chunk in stream if chunk.usage]
    assert [u.completion_tokens for u in usage] == [7]


def test_openai_python_other_endpoints(sdk: openai.OpenAI) -> None:
    assert "tiny" in {model.id for model in sdk.models.list()}
    vectors = sdk.embeddings.create(model="tiny", input=["one", "two"])
    assert len(vectors.data) == 2
    text = sdk.completions.create(model="tiny", prompt="Once", max_tokens=5)
    assert text.choices[0].text
    response = sdk.responses.create(model="tiny", input="hello", max_output_tokens=5)
    assert response.output_text


def test_openai_npm(served: Served) -> None:
    require_real("npm openai")
    node = npm.node_program()
    assert node is not None
    done = subprocess.run(
        [node, str(NPM_SCRIPT)],
        env={
            **os.environ,
            "NODE_EXTRA_CA_CERTS": str(served.cluster.ca),
            "NODE_PATH": str(npm.FOLDER / "node_modules"),
            "OPENAI_BASE_URL": served.cluster.base_url,
            "OPENAI_API_KEY": served.key.secret,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["whole"] == told["streamed"] != ""
    assert told["chunks"] > 30
    assert told["wrongModel"] == {"status": 404, "code": "model_not_found"}


def test_anthropic_python(served: Served) -> None:
    import anthropic

    http = anthropic.DefaultHttpxClient(verify=served.cluster.tls())
    with anthropic.Anthropic(
        base_url=served.cluster.url, api_key=served.key.secret, http_client=http, max_retries=0
    ) as client:
        answer = client.messages.create(
            model="tiny", max_tokens=12, messages=[{"role": "user", "content": "hello"}]
        )
        assert answer.usage.output_tokens == 12
        assert answer.content[0].type == "text"
        with client.messages.stream(
            model="tiny", max_tokens=12, messages=[{"role": "user", "content": "hello"}]
        ) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().stop_reason == "max_tokens"
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(
                model="no-such", max_tokens=1, messages=[{"role": "user", "content": "hello"}]
            )
        assert missing.value.type == "not_found_error"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_streams(served: Served, version: str) -> None:
    require_real("curl with HTTP/2")
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail-with-body", "--no-buffer", version),
            *("--cacert", str(served.cluster.ca), f"{served.cluster.base_url}/chat/completions"),
            *("--header", f"Authorization: Bearer {served.key.secret}"),
            *("--write-out", "\n%{http_version} %{http_code} %{content_type}"),
            *("--data-binary", chat("tiny", stream=True, max_tokens=30).decode()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    body, _, told = done.stdout.rpartition("\n")
    assert body.count("data: ") > 30
    assert body.rstrip().endswith("data: [DONE]")
    http_version, status, content_type = told.split(" ", 2)
    assert (http_version, status) == ("1.1" if version == "--http1.1" else "2", "200")
    assert content_type.startswith("text/event-stream")
