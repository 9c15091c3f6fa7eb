"""The package of docs/extending.md, installed by pip: a real relay and a real node work with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.caller import events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.e2e]

DOC: Final = Path(__file__).parents[2] / "docs/extending.md"
BROKEN: Final = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "wai-broken"
version = "1"

[project.entry-points."wai.dialects"]
quits = "wai_broken.quits:DIALECT"
no_dialect = "wai_broken.odd:ODD"

[project.entry-points."wai.routes"]
quits = "wai_broken.quits:ROUTES"

[project.entry-points."wai.upstreams"]
not_there = "wai_broken.missing:Upstream"
"""
EVENTS: Final = ('{"text": "Hi"}', '{"text": " you"}', '{"done": true}')


def example() -> dict[str, str]:
    """The files of the example, by the names in front of them."""
    found = re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```", DOC.read_text(), re.M | re.S)
    return dict(found)


def install(files: Mapping[str, str], source: Path, target: Path) -> None:
    """Write a package's files and have pip install it into `target`."""
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class _Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, Any]]

    def do_GET(self) -> None:
        known = self.path == "/engines"
        self._answer(200 if known else 404, "application/json", b'["m"]' if known else b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, body))
        stream = "".join(f"data: {event}\n\n" for event in EVENTS).encode()
        self._answer(200, "text/event-stream", stream)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Nothing."""


@contextmanager
def engine() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """The example's server: its URL, and what it was asked."""
    asked: list[tuple[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Engine", (_Engine,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(running: Cluster, key: str, engine_name: str = "m") -> tuple[int, list[str]]:
    """Ask the example's API: the status, and the events or the body."""
    asked = {"engine": engine_name, "stream": True, "input": "Say hi."}
    body = json.dumps(asked).encode()
    headers = {"authorization": f"Bearer {key}"}
    with request(running, "/v2/generate", body, headers) as response:
        if response.status == 200:
            return 200, list(events(response))
        return response.status, [response.read().decode()]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder into which the example was installed, and a package beside it that is broken."""
    target = tmp_path / "installed"
    files = example()
    assert len(files) == 4
    install({**files, "wai_tiny/__init__.py": ""}, tmp_path / "tiny", target)
    broken = {
        "pyproject.toml": BROKEN,
        "wai_broken/__init__.py": "",
        "wai_broken/quits.py": "import sys\nsys.exit('no')\n",
        "wai_broken/odd.py": "ODD = 7\n",
    }
    install(broken, tmp_path / "broken", target)
    return target


def test_the_documented_package_adds_a_dialect_and_a_kind_of_upstream(
    tmp_path: Path, installed: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    with engine() as (url, asked), cluster(tmp_path, env=env) as running:
        running.join("box")
        node = running.start_node(
            "box", "--upstream", url, through=("env", f"PYTHONPATH={installed}")
        )
        key = running.create_key().secret
        wait_until(lambda: ask(running, key)[0] == 200, "the example's API does not answer")
        assert ask(running, key) == (200, list(EVENTS))
        path, body = asked[-1]
        assert (path, body["engine"]) == ("/v2/generate", "m")
        assert "stream_options" not in body
        status, [refusal] = ask(running, key, "another")
        assert (status, list(json.loads(refusal))) == (404, ["detail"])
        status, [refusal] = ask(running, "wai_sk_wrong")
        assert (status, list(json.loads(refusal))) == (401, ["detail"])
        logs = running.relay.log.read_text(), node.daemon.log.read_text()
        for log, names in zip(logs, (["quits", "no_dialect"], ["quits", "not_there"]), strict=True):
            for name in names:
                assert re.search(rf"plug-in `{name}`.*`wai-broken`.*left out", log)


def test_what_is_installed_on_the_relay_does_not_widen_a_nodes_allow_list(
    tmp_path: Path, installed: Path
) -> None:
    """Not even for a node that knows the kind of upstream, and tells that it speaks the API."""
    files = example()
    routes = re.compile(r'\[project.entry-points."wai.routes"\]\n.*\n')
    files["pyproject.toml"], cut = routes.subn("", files["pyproject.toml"])
    assert cut == 1
    without = tmp_path / "without-routes"
    install({**files, "wai_tiny/__init__.py": ""}, tmp_path / "cut", without)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    with engine() as (url, asked), cluster(tmp_path, env=env) as running:
        running.join("box")
        running.start_node("box", "--upstream", url, through=("env", f"PYTHONPATH={without}"))
        running.wait_for_state("box", "ready")
        status, [refusal] = ask(running, running.create_key().secret)
        assert status == 404
        assert "not forwarded" in json.loads(refusal)["detail"]
        assert asked == []
