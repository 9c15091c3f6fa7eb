"""`wai up`, which is `make run`, as a newcomer meets it: in an empty home, by what it prints."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness.keyed_server import keyed_server
from tests.harness.llama_server import llama_server
from tests.harness.processes import Daemon, free_port
from tests.harness.real import require_real, script

pytestmark = pytest.mark.e2e

CURL_LINE = r"^\s*(curl (?:.*\\\n)*.*)$"


def up(home: Path, port: int, log: Path, *options: str) -> Daemon:
    folders = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state"}
    return Daemon(
        [script("wai"), "up", "--listen", f"127.0.0.1:{port}", *options],
        log=log,
        env={"HOME": str(home), **{name: str(home / path) for name, path in folders.items()}},
        cwd=home,
    )


def streamed_by(line: str) -> str:
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_printed_curl_line_streams_and_works_after_a_restart(tmp_path: Path) -> None:
    require_real("smollm2", "curl")
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    with up(home, port, tmp_path / "first.log") as first:
        line = first.wait_for_output(CURL_LINE)[1]
        assert f"https://127.0.0.1:{port}" in line
        answer = streamed_by(line)
        assert answer.count("data: ") > 3
        assert answer.rstrip().endswith("[DONE]")
        first.interrupt_group()
        assert first.wait() == 0
        assert first.kill_leftovers() == []
    with up(home, port, tmp_path / "second.log") as second:
        second.wait_for_output(CURL_LINE)
        assert "[DONE]" in streamed_by(line)
        assert second.stop() == 0


def test_a_taken_port_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with up(tmp_path, port, tmp_path / "log") as refused:
            assert refused.wait() != 0
            assert str(port) in refused.output()
            assert "Traceback" not in refused.output()


def test_a_model_server_that_dies_ends_it_all_with_a_sentence(tmp_path: Path) -> None:
    require_real("smollm2")
    with up(tmp_path, free_port(), tmp_path / "log") as running:
        running.wait_for_output(CURL_LINE)
        (server,) = [p for p in running.family() if "wai_node.demo.demo_server" in p.cmdline()]
        server.kill()
        assert running.wait() == 1
        assert "The demo's model server was ended by SIGKILL" in running.output()
        assert running.kill_leftovers() == []


def test_a_given_server_is_served_with_its_key(tmp_path: Path, tiny_model: Path) -> None:
    require_real("llama-server", "curl")
    secret = "key-of-the-server"
    key_file = tmp_path / "server.key"
    key_file.write_text(secret + "\n")
    with llama_server(tiny_model, tmp_path, key=secret) as server:
        given = ("--upstream", server.url, "--upstream-key-file", str(key_file))
        with up(tmp_path, free_port(), tmp_path / "log", *given) as started:
            assert "[DONE]" in streamed_by(started.wait_for_output(CURL_LINE)[1])
            assert not [p for p in started.family() if secret in " ".join(p.cmdline())]


def test_a_server_that_refuses_the_key_is_named_while_it_is_waited_for(tmp_path: Path) -> None:
    wrong = tmp_path / "server.key"
    wrong.write_text("wrong\n")
    with keyed_server("right") as server:
        given = ("--upstream", server.url, "--upstream-key-file", str(wrong))
        with up(tmp_path, free_port(), tmp_path / "log", *given) as waiting:
            waiting.wait_for_output(r"is not used: .* refuses the key it was given")
            for _ in range(3):  # an impatient one
                waiting.send(signal.SIGINT)
                time.sleep(0.05)
            assert waiting.wait() == 0
            assert "Traceback" not in waiting.output()
            assert waiting.kill_leftovers() == []


def test_an_address_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with up(tmp_path, free_port(), tmp_path / "log", "--upstream", "nope") as refused:
        assert refused.wait() == 1
    said = "wai: the upstream 'nope' is not http://HOST:PORT or unix:///PATH\n"
    assert (tmp_path / "log").read_text() == said
