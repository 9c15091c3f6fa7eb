"""Three models on a box with room for two, under mixed load, with a real llama-server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, CommandError, wai
from tests.harness.fake_hub import FakeRepo
from tests.harness.model_fleet import llama_servers, model
from tests.harness.processes import wait_until
from tests.harness.small_box import Box, small_box

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(240)]
REPOS: Final = ("tiny/one-GGUF", "tiny/two-GGUF", "tiny/three-GGUF")
MODELS: Final = tuple(f"{repo}:F16" for repo in REPOS)
SWAPS: Final = 4  # a turn lasts for five seconds at least
ON_DEMAND: Final = ("--node", "box", "--context", "512", "--slots", "2", "--load", "on-demand")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box with room for two servers, and three models that take turns on it."""
    with small_box(tmp_path_factory.mktemp("box")) as found:
        gguf = next(iter(found.hub.repos.values())).files["tiny-F16.gguf"]
        for repo in REPOS:
            found.hub.repos[repo] = FakeRepo({"tiny-F16.gguf": gguf})
        steady = next(d["model"] for d in found.running.admin("get", "/deployments")["data"])
        found.running.admin("delete", f"/deployments/box?model={steady}")
        wait_until(lambda: not llama_servers(found.running), "the steady model stays")
        for name in MODELS:
            view = model(found.running, "deploy", name, *ON_DEMAND)
            assert (view["state"], view["load"]) == ("ready", "on_demand")
        yield found


class Caller:
    """Asks for one model again and again, as a stream or not, until `stop`."""

    def __init__(self, box: Box, name: str, stop: threading.Event, *, stream: bool) -> None:
        self.name = name
        self.statuses: list[int] = []
        self.ids: list[str] = []
        self._box, self._stop, self._stream = box, stop, stream
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._box.secret}"}
        body = chat(self.name, max_tokens=8, stream=self._stream)
        while not self._stop.wait(0.1):
            with request(self._box.running, "/v1/chat/completions", body, headers) as answer:
                text = answer.read().decode()
                self.ids.append(answer.headers["x-request-id"])
                whole = "[DONE]" in text if self._stream else "choices" in text
                self.statuses.append(answer.status if whole else 599)


def told(running: Cluster, path: str, secret: str) -> Any:
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, path, None, headers) as answer:
        return json.loads(answer.read())


def test_mixed_load_fails_nothing_and_each_swap_is_explained(box: Box) -> None:
    running = box.running
    stop = threading.Event()
    callers = [
        Caller(box, name, stop, stream=stream) for name in MODELS for stream in (True, False)
    ]
    log = running.folder / "node-box.log"
    logged = len(log.read_text())
    most = 0

    def swaps() -> int:
        return log.read_text()[logged:].count("makes room for")

    def swapped() -> bool:
        nonlocal most
        most = max(most, len(llama_servers(running)))
        return swaps() >= SWAPS

    for caller in callers:
        caller.thread.start()
    try:
        wait_until(swapped, "nothing takes turns", 60)
    finally:
        stop.set()
        for caller in callers:
            caller.thread.join()
    statuses = [status for caller in callers for status in caller.statuses]
    assert set(statuses) == {200}, statuses
    assert all(caller.statuses for caller in callers)
    assert most <= 2, "memory was oversubscribed"
    stories = [
        (caller.name, box.running.admin("get", f"/requests/{id_}/explain"))
        for caller in callers
        for id_ in caller.ids
    ]
    waited = [
        (name, attempt["load"], story["id"])
        for name, story in stories
        for attempt in story["attempts"]
        if attempt["load"] and attempt["load"]["made_room"]
    ]
    explained = {
        (name, load["load_ms"], load["room_ms"], *load["made_room"]) for name, load, _ in waited
    }
    assert swaps() == len(explained), f"of {swaps()} swaps these are explained: {explained}"
    assert swaps() < len(statuses) / 4, "each request swaps"
    asleep = [s["attempts"][0]["candidates"][0]["load_s"] for _, s in stories]
    assert max(asleep) > 0, "the relay did not count the load"
    text = wai("explain", waited[0][2], "--data", running.data)
    assert "loaded the model first, in " in text
    assert "had made room" in text


def test_what_sleeps_is_offered_as_such(box: Box) -> None:
    running, secret = box.running, box.secret
    wait_until(lambda: len(running.list_nodes()[0]["models"]) == 3, "a model is missing")
    states = {d["model"]: d["state"] for d in box.running.admin("get", "/deployments")["data"]}
    awake = {name for name, state in states.items() if state == "ready"}
    assert len(awake) <= 2
    listed = {m["id"]: m for m in told(running, "/v1/models", secret)["data"]}
    assert set(listed) == set(MODELS)

    def loaded() -> set[str]:
        return {m["name"] for m in told(running, "/api/ps", secret)["models"]}

    wait_until(lambda: loaded() == awake, "the relay knows it otherwise")
    assert {m["name"] for m in told(running, "/api/tags", secret)["models"]} == set(MODELS)


def test_a_policy_that_makes_no_sense_is_one_clear_sentence(box: Box) -> None:
    wrong = ("--node", "box", "--load", "keep-loaded", "--ttl", "10m")
    with pytest.raises(CommandError, match="kept loaded is not unloaded"):
        model(box.running, "edit", MODELS[0], *wrong)


def test_a_node_that_restarts_loads_nothing_that_is_on_demand(box: Box) -> None:
    running = box.running
    running.nodes["box"].daemon.stop()
    running.run_node("box", "--config", str(running.folder / "node.toml"), models=3)
    states = {d["model"]: d for d in box.running.admin("get", "/deployments")["data"]}
    assert {states[name]["state"] for name in MODELS} == {"asleep"}
    assert llama_servers(running) == []
    assert all(states[name]["load_ms"] < 60_000 for name in MODELS)
    with request(
        running,
        "/v1/chat/completions",
        chat(MODELS[0], max_tokens=4),
        {"Authorization": f"Bearer {box.secret}"},
    ) as answer:
        assert answer.status == 200
