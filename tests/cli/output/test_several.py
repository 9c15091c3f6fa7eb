"""Several deployments at once: each is followed to its end, and told in the words of the list."""

from __future__ import annotations

import argparse
import json
from typing import Any, cast

import pytest

from wai_api.requests import ExplainedAttempt, LoadView
from wai_cli.client.admin_client import AdminClient
from wai_cli.commands import model_deploy
from wai_cli.commands.explain import load_text
from wai_cli.main import main
from wai_cli.options.values import duration
from wai_cli.output import several
from wai_cli.output.deployment import note, policy_text, shown_state
from wai_cli.output.several import follow_all

from .test_deployment import VIEW, Captured

A = {**VIEW, "node": "a"}
B = {**VIEW, "node": "b"}


class Relay:
    """Answers as told: each time the next list, or the last one; `placed` to a deployment."""

    def __init__(self, *lists: list[dict[str, Any]], placed: Any = None) -> None:
        self.lists, self.placed = [*lists], placed
        self.posted: dict[str, Any] = {}

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.posted = {"path": path, **body}
        return {"data": self.placed}

    def get(self, path: str) -> Any:
        if path == "/nodes":
            return {"data": [{"name": name, "state": "ready"} for name in "ab"]}
        return {"data": self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "LOOK_EVERY_S", 0)


def test_each_is_shown_until_the_last_is_settled(capsys: Captured) -> None:
    ready = [{**view, "state": "ready"} for view in (A, B)]
    relay = Relay([A, B], [ready[0], B], ready)
    assert follow_all(cast(AdminClient, relay), [A, B]) == ready
    shown = capsys.readouterr().err
    assert "a: downloading" in shown
    assert "a: ready" in shown
    assert "b: downloading" in shown


def test_one_that_is_gone_is_not_waited_for() -> None:
    relay = Relay([{**A, "state": "ready"}])
    states = [view["state"] for view in follow_all(cast(AdminClient, relay), [A, B])]
    assert states == ["ready", "absent"]


def placed(node: str, outcome: str = "deployed", state: str = "ready") -> dict[str, Any]:
    view = {**VIEW, "node": node, "state": state, "log_tail": []} if outcome == "deployed" else None
    return {"node": node, "outcome": outcome, "reason": "a reason", "deployment": view}


def run(monkeypatch: pytest.MonkeyPatch, relay: Relay, *arguments: str) -> int:
    monkeypatch.setattr(model_deploy, "AdminClient", lambda *_: relay)
    monkeypatch.setattr(model_deploy, "find_target", lambda _: None)
    return main(["model", "deploy", "tiny/x", *arguments])


@pytest.mark.parametrize(
    ("rows", "arguments", "status"),
    [
        ([placed("a"), placed("b")], ("--node", "all"), 0),
        ([placed("a"), placed("b", "failed")], ("--nodes", "a,b"), 1),
        ([placed("a"), placed("b", "left_out")], ("--replicas", "1"), 0),
        ([placed("a"), placed("b", "left_out")], ("--replicas", "2"), 1),
        ([placed("a"), placed("b", state="failed")], ("--node", "all"), 1),
    ],
)
def test_a_partial_failure_is_a_failure_and_says_which(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    rows: list[dict[str, Any]],
    arguments: tuple[str, ...],
    status: int,
) -> None:
    relay = Relay([row["deployment"] for row in rows if row["deployment"]], placed=rows)
    assert run(monkeypatch, relay, *arguments) == status
    told = capsys.readouterr()
    assert "a: tiny/llama-GGUF:F16 is ready" in told.out
    if status:
        assert "b: " in told.err


def test_what_is_wanted_is_sent_as_it_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    relay = Relay([], placed=[placed("a")])
    how = ("--load", "on-demand", "--ttl", "10m", "--priority", "-5", "--nodes", "a,b", "--json")
    assert run(monkeypatch, relay, *how, "--replicas", "1", "--no-wait") == 0
    sent = relay.posted
    assert sent["path"] == "/deployments/several"
    assert (sent["load"], sent["idle_unload_s"], sent["priority"]) == ("on_demand", 600.0, -5)
    assert (sent["nodes"], sent["replicas"]) == (["a", "b"], 1)
    assert json.loads(capsys.readouterr().out)[0]["node"] == "a"


@pytest.mark.parametrize("where", [(), ("--node", "a", "--replicas", "2")])
def test_where_it_is_to_go_must_be_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, where: tuple[str, ...]
) -> None:
    relay = Relay([])
    assert run(monkeypatch, relay, *where) != 0
    assert relay.posted == {}
    assert "--nodes" in capsys.readouterr().err


def test_a_time_is_written_as_people_do() -> None:
    read = duration(1, 1e9)
    assert [read(text) for text in ("90", "90s", "10m", "1.5h", "2d")] == [
        90,
        90,
        600,
        5400,
        172800,
    ]
    for wrong in ("", "m", "0", "ten", "10x", "-5m", "1e99h"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 90s or 10m, from 1s"):
            read(wrong)


def test_the_list_says_whether_a_model_is_asleep_loads_or_is_ready() -> None:
    asleep = {**VIEW, "state": "asleep", "load": "on_demand", "load_ms": 8000}
    assert note(asleep) == "on demand (loads in 8 s)"
    loading = {**asleep, "state": "starting", "reason": "waits until x can make room"}
    assert (shown_state(loading), note(loading)) == ("loading", "waits until x can make room")
    told = {**asleep, "idle_unload_s": 600.0, "priority": 5, "load_ms": None}
    assert policy_text(told) == "on demand, unloaded after 10 min, priority 5"
    assert policy_text(VIEW) == ""


def test_an_explanation_tells_of_the_load_and_of_who_made_room() -> None:
    score = {"node": "box", "load_s": 8.0}
    attempt = ExplainedAttempt("box", "m", "only", 0.0, "", [score])
    assert load_text(attempt) == "box loads the model first, about 8 s"
    done = ExplainedAttempt("box", "m", "only", 0.0, "", [score], LoadView(7900, 1200, ("a", "b")))
    assert load_text(done) == (
        "box loaded the model first, in 7.9 s, after a and b had made room, for which it waited"
        " 1.2 s"
    )
    awake = ExplainedAttempt("box", "m", "only", 0.0, "", [{"node": "box", "load_s": 0.0}])
    assert load_text(awake) is None
