"""A service manager opens the port: the relay takes it, and so does its successor."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import sys
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script

pytestmark = pytest.mark.e2e

# What systemd does: sockets from descriptor 3 on, and variables that name our process.
LAUNCHER: Final = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "wai"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def _first_answer(port: int) -> int:
    """The status of `GET /healthz`, asked as soon as the port is open."""
    wait_until(lambda: _opened(port), "nobody opens the port")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    with closing(connection):
        connection.request("GET", "/healthz")
        return connection.getresponse().status


def _opened(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_relay_takes_the_port_that_was_opened_for_it(tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "relay"
    command = [sys.executable, "-c", LAUNCHER, str(port), script("wai"), "relay"]
    command += ["--data", str(data), "--listen", "127.0.0.1:1"]  # which it could not open

    def answers() -> bool:
        context = ssl.create_default_context(cafile=str(data / "relay.crt"))
        url = f"https://127.0.0.1:{port}/healthz"
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            return bool(answer.status == 200)

    def running() -> tuple[int, str]:
        found = json.loads((data / "relay.json").read_text())
        return found["pid"], found["url"]

    with Daemon(command, log=tmp_path / "relay.log") as relay:
        assert _first_answer(port) == 200  # it came before the relay, and waited in the queue
        relay.wait_for_output("relay ready on")
        assert answers()
        pid, url = running()
        assert (pid, url) == (relay.pid, f"https://127.0.0.1:{port}")
        relay.send(signal.SIGUSR2)
        wait_until(lambda: running()[0] != pid, "no new relay took over")
        successor, url = running()
        assert relay.wait() == 0
        assert url == f"https://127.0.0.1:{port}"
        assert answers()
        variables = Path(f"/proc/{successor}/environ").read_bytes()
        assert b"LISTEN_" not in variables
        os.kill(successor, signal.SIGTERM)
        wait_until(lambda: not relay.family(), "the successor does not stop")
