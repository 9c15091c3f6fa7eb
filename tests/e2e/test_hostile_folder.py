"""Whatever Python we start imports no module from the folder that it is started in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness.hostile import HostileFolder
from tests.harness.processes import STOP_TIMEOUT_S, Daemon, free_port, wait_until
from tests.harness.real import require_real
from wai_cli.commands.child import Child
from wai_node.demo.demo import DemoModel
from wai_node.engines.find import find_engine
from wai_node.engines.store import EngineStore
from wai_node.managed.server.log_file import LogFile
from wai_node.managed.server.process import (
    ServerOptions,
    ServerProcess,
)
from wai_node.managed.server.server_socket import ServerSocket

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostileFolder:
    """The folder, in which this process stands."""
    planted = HostileFolder.plant(tmp_path / "hostile", tmp_path / "imported")
    monkeypatch.chdir(planted.path)
    return planted


def test_the_folder_is_hostile_to_a_python_that_is_started_as_usual(folder: HostileFolder) -> None:
    subprocess.run([sys.executable, "-m", "wai_cli", "version"], check=False)
    assert "wai_cli" in folder.imported


async def test_a_child_of_wai_up_imports_nothing_from_it(
    folder: HostileFolder, tmp_path: Path
) -> None:
    log = tmp_path / "child.log"
    child = await Child.start("child", ["version"], os.environ, log)
    await child._process.wait()
    await child.stop()
    assert (folder.imported, log.read_text()[:4]) == ("", "wai ")


async def test_the_start_of_a_managed_server_imports_nothing_from_it(
    folder: HostileFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    options = ServerOptions(tmp_path / "m.gguf", "m", context_tokens=512, slots=1)
    log = LogFile(tmp_path / "server.log")
    command, socket = ("/bin/echo",), ServerSocket(tmp_path / "run")
    server = ServerProcess(command, options, "key", log, socket)
    await server.start()
    await server.follow()
    log.close()
    assert (folder.imported, "--alias m" in log.path.read_text()) == ("", True)


def test_the_inprocess_server_imports_nothing_from_it(
    folder: HostileFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_real("smollm2")
    monkeypatch.setenv("PATH", "")  # no llama-server
    command = find_engine(EngineStore(tmp_path)).argv
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert (folder.imported, done.returncode) == ("", 0), done.stderr


async def test_the_demo_imports_nothing_from_it(folder: HostileFolder, tmp_path: Path) -> None:
    require_real("smollm2")
    demo = DemoModel("key", tmp_path / "demo.log")
    await demo.start()
    await demo.stop()
    assert folder.imported == ""


def test_an_upgrade_imports_nothing_from_the_folder_of_the_running_relay(tmp_path: Path) -> None:
    data, place = tmp_path / "relay", tmp_path / "hostile"
    place.mkdir()
    command = [sys.executable, "-m", "wai_cli", "relay", "--data", str(data)]
    command += ["--listen", f"127.0.0.1:{free_port()}"]
    told = data / "relay.json"
    with Daemon(command, log=tmp_path / "relay.log", cwd=place) as relay:
        wait_until(told.exists, "the relay does not start")
        old = json.loads(told.read_text())["pid"]
        folder = HostileFolder.plant(place, tmp_path / "imported")
        relay.send(signal.SIGUSR2)
        wait_until(lambda: json.loads(told.read_text())["pid"] != old, "no new relay took over")
        successor = psutil.Process(json.loads(told.read_text())["pid"])
        successor.send_signal(signal.SIGTERM)
        psutil.wait_procs([successor], STOP_TIMEOUT_S)
    assert folder.imported == ""
