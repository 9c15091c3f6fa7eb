"""What a listening process was started with is read where the system lets us, and only there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from wai_node.upstreams.listener_process import environment_of_listener

LISTEN = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])"


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells it")
def test_the_environment_of_whoever_listens_is_read() -> None:
    command = [sys.executable, "-c", f"{LISTEN}; print(flush=True); input()"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OLLAMA_NUM_PARALLEL": "3", "EMPTY": ""},
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        process.stdout.readline()
        found = environment_of_listener(port)
        process.communicate("\n")
    assert (found["OLLAMA_NUM_PARALLEL"], found["EMPTY"]) == ("3", "")


def test_where_nobody_listens_there_is_none() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert environment_of_listener(unused.getsockname()[1]) == {}
