"""Relay and node as the files for Docker Compose confine them: no capability, no new privilege, and
a file system that can't be written but for the data folder and /tmp. The containers' own commands
and health checks are run so, in a mount namespace of this machine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.docs.test_compose import entrypoint, services
from tests.harness.odd_upstream import odd_upstream
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import require_real, script

pytestmark = pytest.mark.e2e

ROOT: Final = Path(__file__).parents[2]
# The data folder and a `tmp` beside it stay writable, the rest of the root's file system does not.
_CONFINE: Final = """set -e
mount --bind "$1" "$1"
mkdir -p "$1/../tmp"
mount -t tmpfs tmpfs "$1/../tmp"
mount -o remount,bind,ro /
shift
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def confined(data: Path, words: list[str]) -> list[str]:
    """A command that runs `words` with no more than a container has; `data` is its volume."""
    inner = [script("wai") if word == "wai" else word for word in words]
    return [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", _CONFINE, "sh"),
        *(str(data), "env", f"TMPDIR={data.parent / 'tmp'}", *inner),
    ]


def health_check(dockerfile: str) -> list[str]:
    found = re.search(r"^ +CMD (\[.*\])$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    assert found is not None
    words: list[str] = json.loads(found[1])
    return words


def volume(folder: Path) -> Path:
    """The data folder of a container, as its image makes it."""
    data = folder / "data"
    data.mkdir(parents=True, mode=0o700)
    return data


def test_relay_and_node_need_more_than_their_containers_give(tmp_path: Path) -> None:
    require_real("root")
    relay_data, node_data = volume(tmp_path / "relay"), volume(tmp_path / "node")
    port = free_port()
    relay = [*entrypoint("relay/Dockerfile"), "--data", str(relay_data)]
    relay[relay.index(":8443")] = f"127.0.0.1:{port}"
    at_node = {"WAI_NODE_DATA": str(node_data), "WAI_RELAY_DATA": str(tmp_path / "none")}
    with (
        odd_upstream() as odd,
        Daemon(confined(relay_data, relay), log=tmp_path / "relay.log") as running,
    ):
        running.wait_for_output("relay ready")
        at_relay = {"WAI_RELAY_DATA": str(relay_data)}
        created = _run(confined(relay_data, ["wai", "invite", "create", "--json"]), at_relay)
        join = [*entrypoint("client/Dockerfile"), "join", "-", "--name", "box"]
        _run(confined(node_data, join), at_node, json.loads(created)["invite"] + "\n")
        command = services("client/compose.ollama.yaml")["node"]["command"]
        node = [*entrypoint("client/Dockerfile"), *command]
        node[node.index("http://ollama:11434")] = odd.url
        with Daemon(confined(node_data, node), log=tmp_path / "node.log", env=at_node):
            listed = confined(relay_data, health_check("relay/Dockerfile"))
            wait_until(lambda: '"answers"' in _run(listed, at_relay), "the node serves nothing")
            looked = _run(confined(node_data, health_check("client/Dockerfile")), at_node)
            assert "problem" not in looked, looked


def test_what_is_run_here_is_not_confined_at_all(tmp_path: Path) -> None:
    require_real("root")
    data = volume(tmp_path)
    tries = "touch data/in tmp/in && ! touch out && ! chown 1 data/in && cat /proc/self/status"
    told = _run(confined(data, ["sh", "-c", f"cd {tmp_path} && {tries}"]), {})
    assert re.search(r"^CapEff:\t0+$", told, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", told, re.MULTILINE)


def _run(command: list[str], env: dict[str, str], text: str = "") -> str:
    done = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in env.items()), *command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
