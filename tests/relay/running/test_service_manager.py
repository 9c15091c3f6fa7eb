"""systemd hears of us, and its absence is no trouble; the unit is sandboxed as it says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from wai_relay.running.service_manager import notify, passed_sockets

ROOT = Path(__file__).parents[3]
UNITS = [ROOT / "relay" / "wai-relay.service", ROOT / "client" / "wai-node.service"]
MOST_EXPOSED = 2.0


def test_a_word_reaches_the_service_manager(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        notify("MAINPID=1", "READY=1", environment={"NOTIFY_SOCKET": address})
        assert manager.recv(100) == b"MAINPID=1\nREADY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_a_relay_without_a_service_manager_says_nothing(address: str) -> None:
    notify("READY=1", environment={"NOTIFY_SOCKET": address})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_service_of_the_machine_is_little_exposed(unit: Path) -> None:
    asked = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", answer.stdout)
    assert found is not None, answer.stderr
    assert float(found[1]) <= MOST_EXPOSED


def test_the_relays_service_may_ask_whether_the_clock_is_synchronised_and_not_set_it() -> None:
    lines = UNITS[0].read_text().splitlines()
    filters = [line.partition("=")[2] for line in lines if line.startswith("SystemCallFilter=")]
    assert {"adjtimex", "clock_adjtime"} <= set(filters[-1].split())  # after what takes it away
    assert not any(line.startswith("ProtectClock=") for line in lines)
    [bound] = [line for line in lines if line.startswith("CapabilityBoundingSet=")]
    assert "CAP_SYS_TIME" not in bound


@pytest.mark.parametrize("pid", ["", "1", str(os.getppid())])
def test_sockets_for_another_process_are_not_taken(pid: str) -> None:
    variables = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "PATH": "/bin"}
    assert passed_sockets(variables) == []
    assert variables == {"PATH": "/bin"}  # nor told to those that we start
