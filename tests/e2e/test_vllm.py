"""A model on the node's own vLLM, deployed and called through the relay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import CommandError, cluster, wai
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.fake_nvml import write_shim
from tests.harness.fake_vllm import repository, write_vllm
from tests.harness.model_fleet import model
from tests.harness.ollama_disk import ollama_disk
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REPO = "tiny/llama"
ON_BOX = ("--node", "box", "--engine", "vllm", "--context", "4096", "--slots", "3")


def test_a_repository_of_safetensors_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "shim"
    shim.mkdir()
    write_shim(shim, "[{}]")
    write_vllm(tmp_path / "bin")
    monkeypatch.setenv("PYTHONPATH", str(shim))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with (
        FakeHub({REPO: FakeRepo(repository())}) as hub,
        ollama_disk(models={"other:latest": 5}) as disk,
        cluster(tmp_path) as running,
    ):
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        running.add_node("box", disk.url)
        view = model(running, "deploy", REPO, *ON_BOX)
        assert (view["state"], view["served_by"], view["context_served"]) == ("ready", "vllm", 4096)
        wait_until(lambda: REPO in running.list_nodes()[0]["models"], "it is not served")
        [served] = [m for m in running.list_nodes()[0]["serving"] if m["id"] == REPO]
        assert (served["slots_total"], served["upstream"]) == (3, f"vllm@managed/{REPO}")
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        with request(running, "/v1/chat/completions", chat(REPO), headers) as answer:
            assert answer.status == 200
            told = json.loads(answer.read())
        assert told["choices"][0]["message"]["content"] == "All is well."
        with pytest.raises(CommandError, match="of the options vLLM takes"):
            wai("model", "edit", REPO, "--node", "box", "--gpu-layers", "3", "--data", running.data)
        model(running, "remove", REPO, "--node", "box")
        wait_until(lambda: not model(running, "list"), "it is not removed")
