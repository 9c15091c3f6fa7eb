"""A relay and a node that gets its models from a fake hub, run by the public commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from .caller import chat, request
from .cluster import Cluster, cluster, wai
from .fake_hub import FakeHub, FakeRepo
from .real import require_real, script

REPO: Final = "tiny/llama-GGUF"
MODEL: Final = f"{REPO}:F16"
_CONFIG: Final = """\
[deploy]
server = {server}
threads = 1
"""


@contextmanager
def model_fleet(
    folder: Path, gguf: bytes, *join: str, server: str | None = None
) -> Iterator[tuple[Cluster, FakeHub]]:
    """A relay and a node `box` without any upstream of its own. `join` are options of `wai node
    join`; `server` stands in for llama-server."""
    require_real("llama-server")
    config = folder / "node.toml"
    config.write_text(_CONFIG.format(server=json.dumps(server or script("llama-server-vulkan"))))
    with (
        FakeHub({REPO: FakeRepo({"tiny-F16.gguf": gguf})}) as hub,
        pytest.MonkeyPatch.context() as p,
    ):
        p.setenv("HF_ENDPOINT", hub.endpoint)
        # tests must not use servers on this machine's usual ports
        p.setenv("WAI_NODE_UPSTREAMS", '[{url = "http://127.0.0.1:9"}]')
        with cluster_with_box(folder, join) as running:
            yield running, hub


@contextmanager
def cluster_with_box(folder: Path, join: tuple[str, ...]) -> Iterator[Cluster]:
    """A relay, and the node `box` that has joined with these options and runs."""
    with cluster(folder) as running:
        running.join("box", *join)
        run_box(running, models=0)
        yield running


def run_box(running: Cluster, *, models: int) -> None:
    """`wai node run` for `box`, until it is ready with `models` models."""
    running.run_node("box", "--config", str(running.folder / "node.toml"), models=models)


def model(running: Cluster, *arguments: str) -> Any:
    """`wai model …`, its JSON."""
    return json.loads(wai("model", *arguments, "--data", running.data, "--json"))


def ask(running: Cluster, secret: str, name: str = MODEL, **fields: Any) -> int:
    """One chat completion's status."""
    headers = {"Authorization": f"Bearer {secret}"}
    body = chat(name, **{"max_tokens": 8, **fields})
    with request(running, "/v1/chat/completions", body, headers) as answer:
        answer.read()
        return answer.status


def llama_servers(running: Cluster) -> list[psutil.Process]:
    """The servers that the node `box` runs now, stopped ones too."""
    node = psutil.Process(running.nodes["box"].daemon.pid)
    return [child for child in node.children(recursive=True) if _is_server(child)]


def _is_server(process: psutil.Process) -> bool:
    try:
        return "--parallel" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False  # it has just ended
