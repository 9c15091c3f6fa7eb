"""The live feed over a real relay and node: a deployment is watched, not asked for."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.model_fleet import MODEL, model, model_fleet
from tests.harness.processes import wait_until
from tests.harness.strict_server import MODEL as STRICT
from tests.harness.strict_server import strict_server
from tests.harness.tiny_gguf import tiny_gguf
from wai_cli.client.live_feed import FeedConnected, read_feed
from wai_cli.client.target import local_target

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


class Watcher(threading.Thread):
    """Keeps what the feed says of deployments, until the relay ends it."""

    def __init__(self, running: Cluster) -> None:
        super().__init__(daemon=True)
        self._target = local_target(running.data)
        self.told: list[dict[str, Any]] = []

    def run(self) -> None:
        for update in read_feed(self._target):
            if not isinstance(update, FeedConnected) and update.name == "deployments":
                self.told.append(update.value)

    def states(self) -> list[str]:
        """Each state that a deployment was in, once in a row."""
        rows = [row["state"] for told in self.told for row in told.get("set", ())]
        return [state for i, state in enumerate(rows) if i == 0 or rows[i - 1] != state]


def test_a_deployment_is_seen_from_its_download_to_its_end(tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "gguf").read_bytes()
    with model_fleet(tmp_path, gguf) as (running, hub):
        hub.faults.pause_s = 0.02  # 3 s in all: some of the feed's half seconds fall into it
        watcher = Watcher(running)
        watcher.start()
        wait_until(lambda: len(watcher.told) > 0, "the feed does not begin")
        assert watcher.told[0] == {"full": True}
        model(running, "deploy", MODEL, "--node", "box", "--context", "512", "--slots", "1")
        wait_until(lambda: watcher.states()[-1:] == ["ready"], "it never becomes ready")
        assert "downloading" in watcher.states()
        # Who comes later is told what there is.
        [row] = json.loads(wai("top", "--json", "--data", running.data))["deployments"]
        assert (row["model"], row["state"]) == (MODEL, "ready")
        model(running, "remove", MODEL, "--node", "box")
        wait_until(lambda: bool(watcher.told[-1].get("gone")), "its end is not told")


def test_the_last_hour_is_there_after_a_restart(tmp_path: Path) -> None:
    with strict_server() as upstream, cluster(tmp_path) as running:
        running.add_node("box", upstream.url)
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        for model_name, status in ((STRICT, 200), ("gone", 404)):
            with request(running, "/v1/chat/completions", chat(model_name), headers) as answer:
                answer.read()
                assert answer.status == status
        running.restart_relay()
        pulse = json.loads(wai("top", "--json", "--data", running.data))["pulse"]
        assert (pulse["requests_hour"], pulse["errors_hour"], pulse["tokens_hour"]) == (1, 0, 2)
