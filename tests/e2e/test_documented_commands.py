"""The commands by which a relay is managed, as operating-a-relay.md, running-a-node.md and
docker-compose.md show them: each is run against a relay with a node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.commands import Command, in_blocks
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.odd_upstream import MODELS, odd_upstream

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("documented")]

PAGES: Final = ("operating-a-relay.md", "running-a-node.md", "docker-compose.md", "upstreams.md")
MANAGES: Final[dict[str, tuple[str, ...] | None]] = {
    "key": None,
    "invite": None,
    "status": None,
    "sign-in": None,
    "top": None,
    "node": ("list", "status", "drain", "undrain", "slots", "remove"),
}
"""The commands that are run, and of those of nodes the actions of the relay's side."""


def manages(command: Command) -> bool:
    words = command.words
    if words[0] != "wai" or words[1] not in MANAGES:
        return False
    actions = MANAGES[words[1]]
    return actions is None or words[2] in actions


COMMANDS: Final = {
    " ".join(command.words): command
    for command in in_blocks()
    if command.place.split(":")[0].removeprefix("docs/") in PAGES and manages(command)
}
LAST_REMOVES: Final[list[str]] = sorted(COMMANDS, key=lambda shown: "remove" in shown)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with odd_upstream() as odd, cluster(tmp_path_factory.mktemp("cluster")) as started:
        started.add_node("box", odd.url, models=len(MODELS))
        yield started


def test_the_pages_show_no_command_that_manages_a_relay() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("shown", LAST_REMOVES)
def test_a_command_of_the_docs_fails(running: Cluster, shown: str, tmp_path: Path) -> None:
    key = running.create_key(f"app-{abs(hash(shown))}")
    server = running.list_nodes()[0]["serving"][0]["upstream"] if "slots" in shown else ""
    values = {"NAME": key.id, "vllm@127.0.0.1:8000": server}
    if "ID" in COMMANDS[shown].words:
        values["ID"] = running.admin("post", "/invites")["id"]
    words = [values.get(word, word) for word in COMMANDS[shown].words[1:]]
    if words[:2] == ["top", "--json"]:
        words = words[:2]
    env = {**os.environ, "WAI_RELAY_DATA": str(running.data), "HOME": str(tmp_path)}
    assert wai(*words, env=env).strip()
