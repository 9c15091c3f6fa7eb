"""kill -9 of the node in each state of a deployment: no server is left, everything comes back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.tiny_gguf import tiny_gguf

REPO: Final = "tiny/llama-GGUF"
WAIT_S: Final = 40.0
_NODE: Final = """
import anyio, json, sys
from pathlib import Path
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.supervisor import Supervisor
from wai_node.models.hub import Hub, HubSettings

endpoint, folder, server, repo = sys.argv[1:]
tell = lambda event: print(event.status.state.value, flush=True)
settings = ManagedSettings(Path(folder) / "node", Path(folder) / "models", server=server, threads=1,
    kept_free_bytes=0)

async def main():
    supervisor = Supervisor(settings, Hub(HubSettings(endpoint)), lambda: "wai_ik_test", tell)
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervisor.run)
        if not supervisor.deployed():
            await supervisor.deploy(repo, 1024, 1)

anyio.run(main)
"""


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def servers_of(folder: Path) -> list[psutil.Process]:
    """llama-servers that serve a file in `folder`, whoever their parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and "--parallel" in argv and any(str(folder) in part for part in argv):
            found.append(process)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere orphans end at the next start")
@pytest.mark.parametrize("state", ["downloading", "starting", "ready"])
def test_a_node_killed_in_any_state_leaves_no_server_and_comes_back(
    state: str, tmp_path: Path
) -> None:
    require_real("llama-server")
    model = tiny_gguf(tmp_path).read_bytes()
    server = script("llama-server-vulkan")
    with FakeHub({REPO: FakeRepo({"tiny-F32.gguf": model})}) as hub:
        argv = [sys.executable, "-c", _NODE, hub.endpoint, str(tmp_path), server, REPO]
        hub.faults.pause_s = 0.01 if state == "downloading" else 0
        _run_until(argv, state, signal.SIGKILL)
        hub.faults.pause_s = 0
        wait_for(lambda: not servers_of(tmp_path))
        wanted = json.loads((tmp_path / "node" / "wanted.json").read_text())
        assert [entry["repo"] for entry in wanted["models"]] == [REPO]
        _run_until(argv, "ready", signal.SIGKILL)
        wait_for(lambda: not servers_of(tmp_path))


def _run_until(argv: list[str], state: str, number: signal.Signals) -> None:
    """Run a node until it says `state`, then send it the signal."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip() == state:
                    break
            else:
                raise AssertionError(f"the node ended before it was {state}")
        finally:
            process.send_signal(number)
