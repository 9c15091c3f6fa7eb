"""What `wai doctor` says of the node on its machine: that it runs is not yet that it works."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wai_cli.checks.own_node import own_node
from wai_node.membership import Membership, keep_membership
from wai_node.standing import Standing, keep_standing
from wai_transport.folder import DataFolder, FolderLock


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """A node's that has joined."""
    folder = DataFolder.open(tmp_path / "node")
    keep_membership(folder, Membership("https://relay", b"", None, "node_1", "box"))
    return folder


@pytest.fixture
def process(folder: DataFolder) -> Iterator[str]:
    """A node that runs."""
    lock = FolderLock.acquire(folder, "node")
    yield f"the node box runs (process {os.getpid()})"
    lock.release()


def _said(folder: DataFolder) -> tuple[bool, str]:
    finding = own_node(folder.path)
    assert finding is not None
    assert finding.ok or finding.advice
    return finding.ok, finding.text


def test_where_no_node_has_joined_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert own_node(tmp_path) is None
    assert own_node(tmp_path / "none") is None


def test_a_node_that_was_stopped_or_killed_does_not_run(folder: DataFolder) -> None:
    keep_standing(folder, Standing(connected=True, models=("tiny",)))
    assert _said(folder) == (False, f"the node box does not run (data folder {folder.path})")
    FolderLock.acquire(folder, "node").release()  # its lock file stays
    assert _said(folder) == (False, f"the node box does not run (data folder {folder.path})")


def test_a_node_that_the_relay_refuses_is_a_problem(folder: DataFolder, process: str) -> None:
    keep_standing(folder, Standing(problem="the node box was removed", models=("tiny",)))
    assert _said(folder) == (False, f"{process}, without a connection: the node box was removed")


def test_a_node_whose_parts_fail_is_a_problem(folder: DataFolder, process: str) -> None:
    down = {"upstream ollama@127.0.0.1:11434": "KeyError", "discovery": "the disk is full"}
    keep_standing(folder, Standing(connected=True, models=("tiny",), parts_down=down))
    assert _said(folder) == (
        False,
        f"{process}, but parts of it fail and are started again: discovery (the disk is full);"
        " upstream ollama@127.0.0.1:11434 (KeyError)",
    )


def test_a_node_whose_engine_leaves_the_gpu_idle_is_a_problem(
    folder: DataFolder, process: str
) -> None:
    idle = "the engine path can't use this machine's GPU (RTX 4090)"
    keep_standing(folder, Standing(connected=True, models=("tiny",), engine_problem=idle))
    assert _said(folder) == (False, f"{process}, but {idle}")


def test_a_node_whose_server_refuses_it_says_which_and_why(
    folder: DataFolder, process: str
) -> None:
    down = {"openai@127.0.0.1:1": "connection refused"}
    keep_standing(folder, Standing(connected=True, upstreams_down=down))
    said = "but can't use every server: openai@127.0.0.1:1: connection refused"
    assert _said(folder) == (False, f"{process} and is connected, {said}")


def test_what_an_older_node_wrote_down_is_read(folder: DataFolder, process: str) -> None:
    folder.write("node.json", b'{"connected": true, "problem": "", "models": ["tiny"]}')
    assert _said(folder) == (True, f"{process}, is connected, and serves: tiny")


def test_a_node_without_a_model_is_a_problem(folder: DataFolder, process: str) -> None:
    keep_standing(folder, Standing(connected=True))
    assert _said(folder) == (False, f"{process} and is connected, but serves no model")


def test_a_node_that_works_is_none(folder: DataFolder, process: str) -> None:
    keep_standing(folder, Standing(connected=True, models=("small", "tiny")))
    assert _said(folder) == (True, f"{process}, is connected, and serves: small, tiny")


def test_a_node_of_an_older_version_is_not_called_broken(folder: DataFolder, process: str) -> None:
    assert _said(folder) == (True, f"{process}; its state is not known")


def test_damaged_files_are_said_not_raised(folder: DataFolder, process: str) -> None:
    folder.write("node.json", b'{"connected": 1')
    assert _said(folder)[0]
    folder.write("membership.json", b"[]")
    assert _said(folder) == (False, f"{folder.path}/membership.json is damaged")
