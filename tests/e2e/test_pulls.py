"""Models on an Ollama that is there: deployed, called, unloaded and removed through the relay."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, CommandError, cluster, wai
from tests.harness.model_fleet import model
from tests.harness.ollama_disk import NO_FILE, OllamaDisk, ollama_disk
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

QWEN = "ollama:qwen3:8b"
ON_BOX = ("--node", "box")


def ask(
    running: Cluster, secret: str, path: str, body: Any, method: str = "POST"
) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, path, json.dumps(body).encode(), headers, method=method) as answer:
        return answer.status, answer.read().decode()


def deployed(running: Cluster) -> dict[str, Any]:
    [row] = model(running, "list")
    found: dict[str, Any] = row
    return found


def test_deploy_call_unload_load_and_remove(tmp_path: Path) -> None:
    registry = {"qwen3:8b": [8_000_000, 400]}
    with ollama_disk(registry=registry, models={"mine:latest": 5}) as disk, cluster(tmp_path) as c:
        c.add_node("box", disk.url)
        secret = c.create_key().secret
        view = model(c, "deploy", QWEN, *ON_BOX)
        assert (view["state"], view["called"], view["served_by"]) == ("ready", "qwen3:8b", "ollama")
        wait_until(lambda: "qwen3:8b" in c.list_nodes()[0]["models"], "it is not served")
        status, _ = ask(c, secret, "/v1/chat/completions", json.loads(chat("qwen3:8b")))
        assert status == 200
        model(c, "unload", QWEN, *ON_BOX)
        wait_until(lambda: deployed(c)["state"] == "asleep", "it is not unloaded")
        assert not disk.loaded
        assert model(c, "load", QWEN, *ON_BOX)["state"] == "ready"
        for wrong in (("--context", "4096"), ("--slots", "2"), ("--cache-type", "q8_0")):
            with pytest.raises(CommandError, match=r"own setting|decides itself"):
                wai("model", "deploy", QWEN, *ON_BOX, *wrong, "--data", c.data)
        no_caller_reaches_what_changes_models(c, secret, disk)
        model(c, "remove", QWEN, *ON_BOX)
        wait_until(lambda: not model(c, "list"), "it is not removed")
        assert disk.deleted == ["qwen3:8b"]
        assert list(disk.models) == ["mine:latest"]


def no_caller_reaches_what_changes_models(c: Cluster, secret: str, disk: OllamaDisk) -> None:
    pulls, models = list(disk.pulls), dict(disk.models)
    for method, path in (
        *(("POST", f"/api/{name}") for name in ("pull", "create", "copy", "push", "me")),
        ("DELETE", "/api/delete"),
        *(("POST", f"/api/v1/models/{name}") for name in ("download", "load", "unload")),
        *(("POST", path) for path in ("/v1/api/pull", "/api/v1/api/pull", "//api/pull")),
        *(("POST", path) for path in ("/api/%70ull", "/api/chat/../pull", "/API/PULL")),
    ):
        body = {"model": "qwen3:8b", "name": "qwen3:8b", "source": "qwen3:8b", "destination": "x"}
        status, _ = ask(c, secret, path, body, method)
        assert status in (400, 404, 405), (method, path, status)
    assert (disk.pulls, disk.models) == (pulls, models)


def test_progress_is_seen_and_a_failure_is_told_to_who_calls(tmp_path: Path) -> None:
    registry = {"qwen3:8b": [8_000_000]}
    with ollama_disk(registry=registry, models={"mine:latest": 5}) as disk, cluster(tmp_path) as c:
        c.add_node("box", disk.url)
        secret = c.create_key().secret
        disk.held.clear()
        model(c, "deploy", QWEN, *ON_BOX, "--no-wait")
        wait_until(lambda: (deployed(c)["progress"] or {"done_bytes": 0})["done_bytes"], "no bytes")
        assert deployed(c)["progress"]["total_bytes"] == 8_000_000
        model(c, "remove", QWEN, *ON_BOX)
        assert disk.hung_up.wait(10)
        disk.held = threading.Event()
        disk.held.set()
        disk.faults.append(NO_FILE)
        with pytest.raises(CommandError, match="registry has no qwen3:8b"):
            wai("model", "deploy", QWEN, *ON_BOX, "--data", c.data)
        status, text = ask(c, secret, "/v1/chat/completions", json.loads(chat("qwen3:8b")))
        assert (status, "registry has no" in text) == (503, True)


def test_a_node_that_joined_without_deployments_changes_no_server(tmp_path: Path) -> None:
    with (
        ollama_disk(registry={"qwen3:8b": [8]}, models={"mine:latest": 5}) as disk,
        cluster(tmp_path) as c,
    ):
        data = tmp_path / "box"
        wai("node", "join", c.invite(), "--data", data, "--name", "box", "--no-deploy")
        c.run_node("box", "--upstream", disk.url)
        with pytest.raises(CommandError, match="takes no deployments"):
            wai("model", "deploy", QWEN, *ON_BOX, "--data", c.data)
        assert not disk.pulls
