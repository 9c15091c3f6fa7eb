"""The rig itself: a real llama-server with our tiny model does what the other tests count on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.harness.llama_server import LlamaServer, llama_server
from tests.harness.tiny_gguf import TinyModel, tiny_gguf

pytestmark = pytest.mark.e2e


def completion(server: LlamaServer, **fields: object) -> dict[str, object]:
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        data=json.dumps(fields).encode(),
        headers={"Authorization": f"Bearer {server.key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        value: dict[str, object] = json.loads(answer.read())
        return value


@pytest.mark.parametrize("half", [False, True])
def test_a_tiny_model_answers_the_same_prompt_the_same_way(tmp_path: Path, half: bool) -> None:
    model = tiny_gguf(tmp_path, TinyModel(half=half))
    with llama_server(model, tmp_path, key="only-for-this-test") as server:
        ask = {
            "messages": [{"role": "user", "content": "hé 👋"}],
            "temperature": 0,
            "max_tokens": 50,
        }
        first, second = completion(server, **ask), completion(server, **ask)
        assert first["choices"] == second["choices"]
        assert first["usage"]["completion_tokens"] == 50  # type: ignore[index]
        assert server.metrics()["llamacpp:tokens_predicted_total"] == 100
        assert server.busy_slots() == 0
        assert server.daemon.exit_code is None
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            completion(LlamaServer(server.url, "wrong", "tiny", server.daemon), **ask)
        refused.value.close()
    assert server.daemon.exit_code is not None
