"""A box without llama.cpp: one deployment brings the engine along, and another one takes over."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, CommandError, wai
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.fake_releases import FakeReleases, listed, real_archive, script_archive
from tests.harness.model_fleet import MODEL, REPO, ask, cluster_with_box, llama_servers, model
from tests.harness.processes import wait_until
from tests.harness.real import SCRIPTS, require_real
from tests.harness.tiny_gguf import tiny_gguf

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(400)]

# Without what the test environment has: its llama-server on PATH, and its package xllamacpp.
_BARE = """\
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "xllamacpp" else found(name, *rest)
"""


@contextmanager
def bare_box(folder: Path) -> Iterator[tuple[Cluster, FakeReleases]]:
    """A relay and the node `box` without an engine; a manifest that lists the real one."""
    require_real("llama-server")
    packed = folder / "releases"
    packed.mkdir()
    archive = real_archive(packed, backend="cpu")
    (folder / "bare").mkdir()
    (folder / "bare" / "sitecustomize.py").write_text(_BARE)
    gguf = tiny_gguf(folder).read_bytes()
    with (
        FakeReleases(packed) as releases,
        FakeHub({REPO: FakeRepo({"tiny-F16.gguf": gguf})}) as hub,
        pytest.MonkeyPatch.context() as patch,
    ):
        here = os.uname().sysname.lower(), os.uname().machine.lower()
        manifest = folder / "manifest.json"
        manifest.write_text(json.dumps(releases.manifest(("b10434", *here, "cpu", archive))))
        (folder / "node.toml").write_text(
            f'[deploy]\nthreads = 1\nengine_manifest = "{manifest}"\n'
        )
        path = [entry for entry in os.environ["PATH"].split(":") if Path(entry) != SCRIPTS]
        patch.setenv("PATH", ":".join(path))
        patch.setenv("PYTHONPATH", str(folder / "bare"), prepend=os.pathsep)
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("WAI_NODE_UPSTREAMS", '[{url = "http://127.0.0.1:9"}]')
        with cluster_with_box(folder, ()) as running:
            yield running, releases


def served_by(running: Cluster) -> list[str]:
    """The folders of the engines whose servers run."""
    found = []
    for process in llama_servers(running):
        try:
            found.append(Path(process.exe()).parent.name)
        except psutil.Error:
            continue
    return found


def test_one_deployment_brings_the_engine_along_and_another_takes_over(tmp_path: Path) -> None:
    with bare_box(tmp_path) as (running, releases):
        secret = running.create_key().secret
        with pytest.raises(CommandError, match="wai node engine install` there, or deploy with"):
            model(running, "deploy", MODEL, "--node", "box", "--context", "512")
        assert releases.seen == []
        [node] = running.list_nodes()
        assert node["detail"]["engine"]["name"] is None
        assert node["detail"]["engine"]["offer"].startswith("llama.cpp b10434 for the CPU")
        began = time.monotonic()
        typed = ("deploy", MODEL, "--node", "box", "--context", "512", "--install-engine")
        assert model(running, *typed)["state"] == "ready"
        wait_until(lambda: ask(running, secret) == 200, "the relay does not hear of it")
        headers = {"Authorization": f"Bearer {secret}"}
        with request(
            running, "/v1/chat/completions", chat(MODEL, stream=True, max_tokens=4), headers
        ) as answer:
            assert next(events(answer)).startswith("{")
        print(f"typed: wai model {' '.join(typed)}")
        print(f"from a box without an engine to a token: {time.monotonic() - began:.1f} s")
        assert served_by(running) == ["b10434-cpu"]
        data = tmp_path / "box"
        [archive] = releases.folder.glob("*.tar.gz")
        given = ("--archive", archive, "--sha256", listed(archive)["sha256"], "--name", "second")
        failed = _under_load(
            running, secret, lambda: wai("node", "engine", "install", *given, "--data", data)
        )
        assert failed == []
        wait_until(lambda: served_by(running) == ["second"], "it never took over", 60)
        bad = script_archive(tmp_path, "b9", "[ $# = 1 ] && echo version: 9 && exit\nkill -SEGV $$")
        given = ("--archive", bad, "--sha256", listed(bad)["sha256"], "--name", "bad")
        failed = _under_load(
            running, secret, lambda: wai("node", "engine", "install", *given, "--data", data)
        )
        assert failed == []
        wait_until(lambda: "SIGSEGV" in _problem_of(data, "bad"), "it is not taken back", 60)
        assert served_by(running) == ["second"]
        assert ask(running, secret) == 200


def _problem_of(data: Path, name: str) -> str:
    rows = json.loads(wai("node", "engine", "list", "--json", "--data", data))
    return str(next(row["problem"] for row in rows if row["name"] == name))


def _under_load(running: Cluster, secret: str, change: object) -> list[int]:
    """Make the change while callers ask all the time, and for three seconds more; the statuses
    that were not 200."""
    assert callable(change)
    stop, statuses = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            statuses.append(ask(running, secret, stream=True))

    callers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        change()
        stop.wait(3.0)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert statuses
    return [status for status in statuses if status != 200]
