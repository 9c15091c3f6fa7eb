"""Where `wai node join` finds the invite: no way but the argument shows it to other users."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.harness.real import script
from tests.harness.terminal import Terminal

WARNING = "other users of this machine can read an invite that is an argument"


pytestmark = pytest.mark.xdist_group("join")  # one relay


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def _join(
    data: Path, *arguments: str, text: str = "", variable: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script("wai"), "node", "join", *arguments, "--data", str(data), "--json"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "WAI_INVITE": variable},
    )


@pytest.mark.parametrize("way", ["argument", "standard input", "variable"])
def test_an_invite_joins_however_it_is_given(running: Cluster, tmp_path: Path, way: str) -> None:
    invite = running.invite()
    match way:
        case "argument":
            done = _join(tmp_path, invite)
        case "standard input":
            done = _join(tmp_path, "-", text=f"{invite}\n", variable="wai_inv_other")
        case _:
            done = _join(tmp_path, variable=invite)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relay"] == running.url
    assert (WARNING in done.stderr) == (way == "argument")


def test_at_a_terminal_the_invite_is_asked_for_and_not_shown(
    running: Cluster, tmp_path: Path
) -> None:
    invite = running.invite()
    command = [script("wai"), "node", "join", "--data", str(tmp_path)]
    with Terminal(command, size=(100, 24)) as terminal:
        terminal.wait_for(lambda: b"Invite" in terminal.drawn, "it does not ask")
        terminal.press(f"{invite}\n".encode())
        assert terminal.end() == 0
    assert b"this machine is" in terminal.drawn
    assert invite.encode() not in terminal.drawn


def test_no_invite_at_all_is_one_sentence(tmp_path: Path) -> None:
    done = _join(tmp_path)
    assert done.returncode == 2
    assert "an invite is needed" in done.stderr


def test_an_upstreams_key_is_read_from_a_file(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-file"
    command = [
        script("wai"),
        "node",
        "run",
        "--data",
        str(tmp_path),
        "--upstream",
        "http://[::1]:1",
    ]
    for file, said in ((missing, str(missing)), (tmp_path / "key", "has not joined a relay")):
        (tmp_path / "key").write_text("the key\n")
        asked = [*command, "--upstream-key-file", str(file)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "the key" not in done.stderr
