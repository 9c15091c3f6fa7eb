"""A real llama-server with a tiny model, as an upstream of nodes in tests.

Always one thread: with more threads than free cores llama.cpp spins and falls to a few tokens/s.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from .processes import START_TIMEOUT_S, Daemon, free_port
from .real import require_real, script

_TRIES: Final = 3  # a port that was free when we looked may be taken when llama-server binds it
_ANSWER_TIMEOUT_S: Final = 30.0
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A running llama-server. `key` is what it demands of every request; "" for none."""

    url: str
    key: str
    alias: str
    daemon: Daemon

    def get(self, path: str) -> str:
        """The body of `GET path`; raises `urllib.error.HTTPError` on an error status."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(self.url + path, headers=headers)
        with _DIRECT.open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body.decode()

    def slots(self) -> list[dict[str, Any]]:
        """`/slots`: one map per slot; `is_processing` tells whether it is busy."""
        slots: list[dict[str, Any]] = json.loads(self.get("/slots"))
        return slots

    def busy_slots(self) -> int:
        """How many slots work now."""
        return sum(1 for slot in self.slots() if slot["is_processing"])

    def metrics(self) -> dict[str, float]:
        """`/metrics`: value by name, as `llamacpp:requests_processing`."""
        lines = (line for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        pairs = (line.rsplit(" ", 1) for line in lines if line.strip())
        return {name: float(value) for name, value in pairs}


@contextmanager
def llama_server(
    model: Path,
    log_folder: Path,
    *,
    alias: str = "tiny",
    key: str = "",
    slots: int = 2,
    context_tokens: int = 4096,
    embeddings: bool = False,
    extra: tuple[str, ...] = (),
) -> Iterator[LlamaServer]:
    """A llama-server that serves `model`, from its first healthy answer until the block ends.

    `context_tokens` is for all slots together: each gets `context_tokens / slots`. The key goes by
    environment, as the product does it. Its log stays in `log_folder`.
    """
    require_real("llama-server")
    daemon, url = _started(
        [
            script("llama-server-vulkan"),
            *("--model", str(model), "--alias", alias),
            *("-t", "1", "-np", str(slots), "-c", str(context_tokens)),
            *("--host", "127.0.0.1", "--metrics", "--slots", "--no-webui", "--offline"),
            *(("--embeddings", "--pooling", "mean") if embeddings else ()),
            *extra,
        ],
        log_folder,
        key,
    )
    with daemon:
        yield LlamaServer(url, key, alias, daemon)


def _started(argv: list[str], log_folder: Path, key: str) -> tuple[Daemon, str]:
    for _ in range(_TRIES):
        port = free_port()
        daemon = Daemon(
            [*argv, "--port", str(port)],
            log=log_folder / f"llama-server-{port}.log",
            env={"LLAMA_API_KEY": key} if key else {},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            daemon.wait_until(partial(_healthy, url), "not healthy")
        except AssertionError:
            daemon.close()
            if "couldn't bind" not in daemon.output():
                raise
        else:
            return daemon, url
    raise AssertionError(f"no free port in {_TRIES} tries")


def _healthy(url: str) -> bool:
    try:
        with _DIRECT.open(f"{url}/health", timeout=START_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False  # nothing listens yet, or 503: it loads its model
