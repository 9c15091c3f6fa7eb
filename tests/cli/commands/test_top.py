"""`wai top` in a real terminal, against a real relay."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, CommandError, cluster, wai
from tests.harness.real import script
from tests.harness.terminal import Terminal

_LEAVE = b"\x1b[?25h\x1b[?1049l"
_SIZE = (100, 24)


pytestmark = pytest.mark.xdist_group("top")  # one relay


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def top(data: Path, *options: str, env: dict[str, str] | None = None) -> Terminal:
    return Terminal([script("wai"), "top", "--data", str(data), *options], size=_SIZE, env=env)


def test_q_quits_and_leaves_the_terminal_as_it_was(running: Cluster) -> None:
    with top(running.data) as terminal:
        terminal.wait_for_text("no node has joined yet")
        terminal.wait_for_text(running.url)
        assert terminal.settings() != terminal.found
        terminal.press(b"q")
        assert terminal.end() == 0
        assert terminal.settings() == terminal.found
        assert terminal.drawn.endswith(_LEAVE)


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_whatever_ends_it_the_terminal_is_left_as_it_was(running: Cluster, how: str) -> None:
    with top(running.data) as terminal:
        terminal.wait_for_text("no node has joined yet")
        if how == "ctrl-c":
            terminal.press(b"\x03")
        else:
            terminal.send(signal.SIGTERM)
        expected = {"ctrl-c": signal.SIGINT, "sigterm": signal.SIGTERM}
        assert terminal.end() == 128 + expected[how]
        assert terminal.settings() == terminal.found
        assert terminal.drawn.endswith(_LEAVE)


def test_while_it_is_stopped_the_terminal_is_the_shells(running: Cluster) -> None:
    with top(running.data, "--interval", "3600") as terminal:
        terminal.wait_for_text("no node has joined yet")
        terminal.press(b"\x1a")
        terminal.wait_for(lambda: terminal.drawn.endswith(_LEAVE), "the screen is not left")
        terminal.wait_for(lambda: terminal.settings() == terminal.found, "keys are not given back")
        terminal.wait_for(terminal.stopped, "it is not stopped")
        before = len(terminal.drawn)
        terminal.send(signal.SIGCONT)
        terminal.wait_for(
            lambda: b"no node has joined" in terminal.drawn[before:], "it is not drawn again"
        )
        terminal.press(b"q")
        assert terminal.end() == 0


def test_a_window_that_becomes_narrow_is_drawn_anew_at_once(running: Cluster) -> None:
    env = {"COLUMNS": "80", "LINES": "24"}  # a shell's, of the window as it was
    with top(running.data, "--interval", "3600", env=env) as terminal:
        terminal.wait_for_text("no node has joined yet")
        terminal.resize(30, 5)
        terminal.wait_for(lambda: max(map(len, terminal.frame())) <= 30, "it is still wide")
        assert len(terminal.frame()) <= 5


def test_colours_are_off_where_they_are_not_wanted(running: Cluster) -> None:
    with top(running.data) as terminal:
        terminal.wait_for_text("no node has joined yet")
        assert b"\x1b[1m" in terminal.drawn
    with top(running.data, env={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for_text("no node has joined yet")
        assert b"\x1b[1m" not in terminal.drawn


def test_a_relay_that_goes_away_is_said_and_one_that_comes_back_is_shown(tmp_path: Path) -> None:
    with cluster(tmp_path) as running, top(running.data, "--interval", "0.1") as terminal:
        terminal.wait_for_text("no node has joined yet")
        running.relay.stop()
        terminal.wait_for_text("trying again")
        terminal.wait_for_text("no node has joined yet")  # what was known last, and said to be old
        running.restart_relay()
        terminal.wait_for(
            lambda: "trying again" not in " ".join(terminal.frame()), "it does not come back"
        )
        terminal.press(b"q")
        assert terminal.end() == 0


def test_into_a_pipe_it_prints_one_look_and_ends(running: Cluster) -> None:
    text = wai("top", "--data", running.data)
    assert "no node has joined yet" in text
    assert "\x1b" not in text


def test_json_is_one_look_for_scripts(running: Cluster) -> None:
    told = json.loads(wai("top", "--json", "--data", running.data))
    assert (told["nodes"], told["requests"], told["deployments"]) == ([], [], [])
    assert told["pulse"]["running"] == 0


def test_what_is_wrong_is_said_without_a_screen(running: Cluster, tmp_path: Path) -> None:
    for options in (("--interval", "0"), ("--data", str(tmp_path / "none"))):
        with top(running.data, *options) as terminal:
            assert terminal.end() == 1
            assert b"wai: " in terminal.drawn
            assert b"\x1b[?1049h" not in terminal.drawn
    token = tmp_path / "token"
    token.write_text("wai_at_wrong")
    with pytest.raises(CommandError) as refused:
        wai(*("top", "--relay", running.url, "--ca", running.ca, "--token-file", token))
    assert "not known" in refused.value.output
