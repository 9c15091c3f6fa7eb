"""A relay with one node for each kind of server, and the clients' scripts run against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import npm
from tests.harness.cluster import Cluster, cluster
from tests.harness.llama_server import llama_server
from tests.harness.model_servers import ModelServer, model_server

from .clients import DOCUMENTED_WITH, SERVERS, Client

FOLDER: Final = Path(__file__).parent
TIMEOUT_S: Final = 120.0
_DEAD_PROXY: Final = "http://127.0.0.1:9"
"""Where a client would go that calls anything but the relay: nobody listens there."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The relay, the model of each server, and the fake servers."""

    cluster: Cluster
    key: str
    models: dict[str, str]
    servers: dict[str, ModelServer]


@dataclass(frozen=True, slots=True)
class Result:
    """What a client got of a server: `error` is empty where it works."""

    said: str
    error: str


@contextmanager
def fleet(folder: Path, model: Path, *, context_tokens: int = 8192) -> Iterator[Fleet]:
    """A relay before a node for each of `SERVERS`; `model` is a GGUF file for llama-server."""
    with ExitStack() as ending:
        llama = ending.enter_context(
            llama_server(
                *(model, folder),
                alias="tiny",
                embeddings=True,
                context_tokens=context_tokens,
                slots=1,
                extra=("--jinja",),
            )
        )
        running = ending.enter_context(cluster(folder))
        models, servers = {"llama-server": "tiny"}, {}
        running.add_node("llama-server", llama.url)
        for kind in SERVERS[1:]:
            server = servers[kind] = ending.enter_context(model_server(kind))
            running.add_node(kind, server.url, upstream_key=server.key)
            models[kind] = server.model
        yield Fleet(running, running.create_key().secret, models, servers)


@contextmanager
def fleet_of_one(folder: Path) -> Iterator[Fleet]:
    """A relay before one node, with the server of `DOCUMENTED_WITH`."""
    with model_server(DOCUMENTED_WITH) as server, cluster(folder) as running:
        running.add_node(DOCUMENTED_WITH, server.url, upstream_key=server.key)
        key = running.create_key().secret
        yield Fleet(running, key, {DOCUMENTED_WITH: server.model}, {DOCUMENTED_WITH: server})


def run(
    client: Client, there: Fleet, *, python: str = sys.executable, packages: Path | None = None
) -> dict[str, Result]:
    """What `client` gets of each server. `python` has its packages, `packages` those from npm."""
    models = list(there.models.values())
    if client.runs_on_node:
        program = npm.node_program()
        assert program is not None
        argv = [program, str((packages or FOLDER / "npm") / client.script), *models]
    else:
        argv = [python, str(FOLDER / "python" / client.script), *models]
    try:
        done = subprocess.run(
            argv,
            env=environment(there, packages),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S * len(models),
            check=False,
        )
        output, problem = done.stdout, done.stderr.strip()[-300:]
    except subprocess.TimeoutExpired as late:
        output, problem = (late.stdout or b"").decode(), "it did not end in time"
    told = {}
    for line in output.splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            told[entry["model"]] = Result(entry["said"], entry["error"])
    lost = Result("", problem or "it printed nothing")
    return {server: told.get(model, lost) for server, model in there.models.items()}


def environment(there: Fleet, packages: Path | None) -> dict[str, str]:
    """What a client's process is given: whom to trust, and no way to anybody but the relay."""
    ca = str(there.cluster.data / "relay-ca.crt")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(FOLDER / "python"),
        "PYTHONWARNINGS": "ignore",
        "WAI_URL": there.cluster.url,
        "WAI_KEY": there.key,
        "WAI_NPM": str(packages or ""),
        "SSL_CERT_FILE": ca,
        "REQUESTS_CA_BUNDLE": ca,
        "NODE_EXTRA_CA_CERTS": ca,
        "CODEX_CA_CERTIFICATE": ca,
        "HTTPS_PROXY": _DEAD_PROXY,
        "HTTP_PROXY": _DEAD_PROXY,
        "NO_PROXY": "127.0.0.1,localhost",
    }
