"""Watching a deployment: what is shown, and that the wait ends where nothing more will come."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from typing import Any, cast

import pytest

from wai_cli.client.admin_client import AdminClient
from wai_cli.commands.model_deploy import report
from wai_cli.main import _complain
from wai_cli.output import deployment
from wai_cli.output.deployment import follow, note, settled
from wai_protocol.errors import RequestError

Captured = pytest.CaptureFixture[str]
VIEW: dict[str, Any] = {
    "node": "box",
    "model": "tiny/llama-GGUF:F16",
    "state": "downloading",
    "reason": "",
    "swap_error": "",
    "context": 4096,
    "context_served": None,
    "slots": 2,
    "changing": False,
    "progress": None,
}


class Relay:
    """Answers as told: each time the next list, or the last one; the node is in `state`."""

    def __init__(self, lists: list[list[dict[str, Any]]], state: str = "ready") -> None:
        self.lists, self.state = lists, state

    def get(self, path: str) -> Any:
        if path == "/nodes/box":
            return {"state": self.state}
        return {"data": self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "LOOK_EVERY_S", 0)


def watch(relay: Relay, view: dict[str, Any] = VIEW) -> dict[str, Any]:
    return follow(cast(AdminClient, relay), view)


def test_a_model_that_somebody_else_removes_is_not_waited_for() -> None:
    with pytest.raises(RequestError, match="not deployed on box any more"):
        watch(Relay([[VIEW], []]))


def test_a_node_that_is_away_or_only_just_back_is_waited_for(capsys: Captured) -> None:
    class Returning(Relay):
        def get(self, path: str) -> Any:
            self.state = "offline" if len(self.lists) >= deployment.MAX_MISSES else "ready"
            return super().get(path)

    ready = {**VIEW, "state": "ready"}
    lists: list[list[dict[str, Any]]] = [[] for _ in range(2 * deployment.MAX_MISSES)]
    assert watch(Returning([*lists, [ready]])) == ready
    assert "node box is away" in capsys.readouterr().err


def test_a_smaller_context_is_not_done_while_the_larger_one_is_served() -> None:
    before = {**VIEW, "state": "ready", "context": 512, "context_served": 4096, "changing": True}
    after = {**before, "context_served": 512, "changing": False}
    assert watch(Relay([[before], [before], [after]]), before) == after


def test_a_node_that_does_not_say_whether_it_changes_is_taken_at_its_state() -> None:
    assert settled(
        {name: value for name, value in VIEW.items() if name != "changing"} | {"state": "ready"}
    )


PROGRESS = {"done_bytes": 1 << 19, "total_bytes": 1 << 20, "rate_bps": 1024.0, "eta_s": 512.0}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"progress": PROGRESS}, "50% of 1.0 MiB, 1.0 KiB/s, 9 min left"),
        ({"state": "failed", "reason": "it can't be had"}, "it can't be had"),
        ({"state": "ready", "changing": True}, "changing to 2 slots of 4096 tokens"),
        ({"state": "ready", "swap_error": "no room"}, "it was not changed: no room"),
    ],
)
def test_a_list_says_what_goes_on(change: dict[str, Any], text: str) -> None:
    assert note({**VIEW, **change}) == text


@pytest.mark.parametrize(
    "say", [_complain, lambda text: watch(Relay([[]]), {**VIEW, "state": text})]
)
def test_what_a_node_says_does_not_steer_the_terminal(
    capsys: Captured, say: Callable[[str], object]
) -> None:
    with contextlib.suppress(RequestError):
        say("failed\x1b]0;owned\x07")
    shown = capsys.readouterr().err
    assert "failed?]0;owned?" in shown
    assert "\x1b]" not in shown


def test_a_change_that_failed_earlier_is_no_failure_of_a_load(capsys: Captured) -> None:
    view = {**VIEW, "state": "ready", "swap_error": "too long a context"}
    parsed = argparse.Namespace(json=False)
    assert report(parsed, view, asked_change=False) == 0
    assert "tiny/llama-GGUF:F16 is ready on box" in capsys.readouterr().out
    with pytest.raises(RequestError, match="it was not changed: too long a context"):
        report(parsed, view)
