"""Models that are not for chat: what they are for is read from their files, not typed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import request
from tests.harness.cluster import Cluster, CommandError
from tests.harness.fake_hub import FakeRepo
from tests.harness.model_fleet import MODEL, REPO, ask, model, model_fleet, run_box
from tests.harness.processes import wait_until
from tests.harness.tiny_encoder import RANK, Encoder, write_encoder
from tests.harness.tiny_gguf import tiny_gguf
from tests.harness.tiny_vision import png, write_projector

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def post(running: Cluster, secret: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, path, json.dumps(body).encode(), headers) as answer:
        return answer.status, json.loads(answer.read())


def test_an_embedding_model_and_a_reranker_answer(tmp_path: Path) -> None:
    embed = write_encoder(tmp_path / "embed-F16.gguf").read_bytes()
    rank = write_encoder(tmp_path / "rank-F16.gguf", Encoder(pooling=RANK)).read_bytes()
    chat = tiny_gguf(tmp_path / "gguf").read_bytes()
    with model_fleet(tmp_path, chat) as (running, hub):
        hub.repos["tiny/embed-GGUF"] = FakeRepo({"embed-F16.gguf": embed})
        hub.repos["tiny/rank-GGUF"] = FakeRepo({"rank-F16.gguf": rank})
        secret = running.create_key().secret
        for name in ("embed", "rank"):
            view = model(running, "deploy", f"tiny/{name}-GGUF", "--node", "box")
            assert (view["state"], view["context_served"]) == ("ready", 512)
        embedding = {"model": "tiny/embed-GGUF:F16", "input": ["good day", "x " * 400]}
        wait_until(
            lambda: post(running, secret, "/v1/embeddings", embedding)[0] == 200,
            "the embedding model does not answer",
        )
        _, told = post(running, secret, "/v1/embeddings", embedding)
        assert [len(one["embedding"]) for one in told["data"]] == [64, 64]
        assert told["usage"]["prompt_tokens"] > 400, "a text was cut"
        ranking = {
            "model": "tiny/rank-GGUF:F16",
            "query": "which day",
            "documents": ["a good day", "0123456789"],
        }
        wait_until(
            lambda: post(running, secret, "/v1/rerank", ranking)[0] == 200,
            "the reranker does not answer",
        )
        _, told = post(running, secret, "/v1/rerank", ranking)
        assert sorted(one["index"] for one in told["results"]) == [0, 1]
        kinds = {view["model"]: view["purpose"] for view in model(running, "list")}
        assert kinds == {"tiny/embed-GGUF:F16": "embedding", "tiny/rank-GGUF:F16": "rerank"}


def test_a_vision_model_brings_its_projector_and_answers_an_image(tmp_path: Path) -> None:
    chat = tiny_gguf(tmp_path / "gguf").read_bytes()
    seeing = write_projector(tmp_path / "mmproj.gguf").read_bytes()
    with model_fleet(tmp_path, chat) as (running, hub):
        files = {f"mmproj-{kind}.gguf": seeing for kind in ("F32", "BF16", "F16", "Q8_0")}
        hub.repos[REPO] = FakeRepo({"tiny-F16.gguf": chat, **files})
        secret = running.create_key().secret
        with pytest.raises(CommandError, match="no projector 'Q2_K'; the repository has: mmproj"):
            model(running, "deploy", REPO, "--node", "box", "--mmproj", "Q2_K")
        view = model(running, "deploy", REPO, "--node", "box", "--context", "1024")
        assert (view["state"], view["mmproj"]) == ("ready", "mmproj-F16.gguf")
        picture = base64.b64encode(png()).decode()
        asked = {
            "model": MODEL,
            "max_tokens": 4,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{picture}"},
                        },
                    ],
                }
            ],
        }
        wait_until(
            lambda: post(running, secret, "/v1/chat/completions", asked)[0] == 200,
            "the image is not answered",
        )
        _, told = post(running, secret, "/v1/chat/completions", asked)
        assert told["usage"]["completion_tokens"] == 4
        folder = tmp_path / "box" / "models"
        assert sorted(p.name for p in folder.rglob("*.gguf")) == [
            *("mmproj-F16.gguf", "tiny-F16.gguf")
        ]
        changed = model(running, "edit", MODEL, "--node", "box", "--slots", "1")
        assert (changed["mmproj"], changed["slots"]) == ("mmproj-F16.gguf", 1)
        wait_until(
            lambda: post(running, secret, "/v1/chat/completions", asked)[0] == 200,
            "the image is not answered after an edit",
        )
        model(running, "remove", MODEL, "--node", "box")
        wait_until(lambda: list(folder.rglob("*.gguf")) == [], "a file is left")
        view = model(running, "deploy", REPO, "--node", "box", "--mmproj", "none")
        assert view["mmproj"] == ""


def test_a_file_of_the_owners_is_deployed_by_its_path(tmp_path: Path) -> None:
    chat = tiny_gguf(tmp_path / "gguf").read_bytes()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine-F16.gguf").write_bytes(chat)
    with model_fleet(tmp_path, chat) as (running, _):
        with pytest.raises(CommandError, match="serves no files of its own"):
            model(running, "deploy", "./mine-F16.gguf", "--node", "box")
        settings = tmp_path / "node.toml"
        settings.write_text(f'{settings.read_text()}folders = ["{tmp_path / "own"}"]\n')
        running.nodes["box"].daemon.stop()
        run_box(running, models=0)
        view = model(running, "deploy", "./mine-F16.gguf", "--node", "box", "--context", "512")
        assert (view["state"], view["model"]) == ("ready", "local/mine-F16")
        secret = running.create_key().secret
        wait_until(lambda: ask(running, secret, "local/mine-F16") == 200, "it does not answer")
        model(running, "remove", "local/mine-F16", "--node", "box")
        wait_until(lambda: model(running, "list") == [], "the model is still there")
        assert (tmp_path / "own" / "mine-F16.gguf").read_bytes() == chat
