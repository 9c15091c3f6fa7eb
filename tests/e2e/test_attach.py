"""Several inference servers beside one node, of different kinds; one of them dies and returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.counting_upstream import MODEL, counting_upstream
from tests.harness.llama_server import llama_server
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

KEY: Final = "key-of-the-llama-server"


def asked(running: Cluster, secret: str, model: str) -> tuple[int, str | None, str]:
    """Status, Retry-After and error code of a chat."""
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, "/v1/chat/completions", chat(model, max_tokens=4), headers) as answer:
        body = json.loads(answer.read())
        code = body.get("error", {}).get("code", "")
        return answer.status, answer.headers["Retry-After"], code


def listed(running: Cluster) -> dict[str, set[bool]]:
    """The models that the relay knows of, and whether each of their places is ready."""
    found: dict[str, set[bool]] = {}
    for model in running.list_nodes()[0]["serving"]:
        found.setdefault(model["id"], set()).add(model["ready"])
    return found


def test_two_servers_with_one_model_in_common_and_one_dies(
    tmp_path: Path, tiny_model: Path
) -> None:
    with (
        counting_upstream() as other,
        llama_server(tiny_model, tmp_path, alias=MODEL, key=KEY) as shared,
        llama_server(tiny_model, tmp_path, alias="own", key=KEY) as own,
        cluster(tmp_path) as running,
    ):
        secret = running.create_key().secret
        running.join("box")
        both = ("--upstream", shared.url, "--upstream-key", KEY, "--upstream", own.url)
        running.run_node("box", *both, "--upstream-key", KEY, "--upstream", other.url, models=3)
        serving = running.list_nodes()[0]["serving"]
        assert len({model["upstream"] for model in serving}) == 3
        assert {model["upstream"].split("@")[0] for model in serving} == {"llama-server", "openai"}
        assert asked(running, secret, MODEL)[0] == asked(running, secret, "own")[0] == 200
        for dying in (shared, own):
            dying.daemon.kill()
        wait_until(
            lambda: listed(running) == {MODEL: {True, False}, "own": {False}},
            "the relay does not hear of it",
        )
        assert [asked(running, secret, MODEL)[0] for _ in range(4)] == [200] * 4
        status, retry_after, code = asked(running, secret, "own")
        assert (status, code) == (503, "no_node_available")
        assert retry_after is not None
        assert asked(running, secret, "never-there")[0] == 404
        # a restarted node does not know what a dead server served; its relay still does
        running.nodes["box"].daemon.kill()
        running.run_node("box", *both, "--upstream-key", KEY, "--upstream", other.url, models=1)
        assert asked(running, secret, "own")[0] == 503
        assert asked(running, secret, MODEL)[0] == 200
