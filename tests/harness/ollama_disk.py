"""An Ollama that pulls, deletes, loads and unloads, as `server/routes.go` does, and as it fails.

`OllamaDisk` is its registry, its disk and its memory, which tests read and change. A pull tells its
errors inside the 200 that it has begun with; what a broken one left is gone on from.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from .model_servers import Json, ModelHttpServer, ModelServer, OllamaHandler, Refused
from .threaded_server import serving

HELD_S: Final = 20.0
NO_FILE: Final = "pull model manifest: file does not exist"
FULL: Final = "write /root/.ollama/models/blobs/sha256-77-partial-3: no space left on device"
NO_NET: Final = (
    'pull model manifest: Get "https://registry.ollama.ai/v2/library/x/manifests/latest": dial tcp:'
    " lookup registry.ollama.ai: no such host"
)


@dataclass
class OllamaDisk:
    """`registry`: the sizes of a model's layers by its full name. `faults`: what the next pulls
    meet: "cut", "garbage", "endless", "403", or the words of an error. `held`: pulls stop half-way
    until it is set. `no_routes`: those that this version has not."""

    url: str = ""
    registry: dict[str, list[int]] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    embeds: set[str] = field(default_factory=set)
    partial: dict[str, int] = field(default_factory=dict)
    faults: deque[str] = field(default_factory=deque)
    held: threading.Event = field(default_factory=threading.Event)
    no_routes: set[str] = field(default_factory=set)
    too_large: set[str] = field(default_factory=set)
    pulls: list[str] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    deleted: list[str] = field(default_factory=list)
    keep_alive: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held.set()


class _Store(OllamaHandler):
    server: _StoreServer
    posts = (*OllamaHandler.posts, "/api/pull")

    @property
    def disk(self) -> OllamaDisk:
        return self.server.disk

    def do_DELETE(self) -> None:  # noqa: N802
        self._answer(self._delete)

    def get(self) -> None:
        match self.path:
            case "/api/tags":
                self._json(200, {"models": [self._entry(name) for name in self.disk.models]})
            case "/api/ps":
                rows = [{**self._entry(name), "context_length": 4096} for name in self.disk.loaded]
                self._json(200, {"models": rows})
            case "/v1/models":
                data = [{"id": name, "owned_by": "library"} for name in self.disk.models]
                self._json(200, {"object": "list", "data": data})
            case _:
                super().get()

    def check(self, body: Json) -> None:
        if self.path == "/api/pull":
            return
        name = _full(str(body.get("model", "")))
        if name not in self.disk.models:
            raise Refused(404, {"error": f"model '{body.get('model')}' not found"})
        if self.path in ("/v1/chat/completions", "/api/chat"):
            self.disk.loaded.add(name)

    def _post(self) -> None:
        if self.path in self.disk.no_routes:
            self._body()
            self._text(404, b"404 page not found")
            return
        super()._post()

    def _entry(self, name: str) -> Json:
        size = self.disk.models[name]
        return {"name": name, "model": name, "size": size, "digest": f"{hash(name) & 0xFFFF:064x}"}

    def ollama_show(self, body: Json) -> None:
        name = _full(body["model"])
        able = ["embedding"] if name in self.disk.embeds else ["completion", "tools"]
        self._json(200, {"model_info": {"llama.context_length": 40960}, "capabilities": able})

    def ollama_generate(self, body: Json) -> None:
        if body.get("prompt"):
            super().ollama_generate(body)
            return
        disk, name = self.disk, _full(body["model"])
        disk.keep_alive.append(body.get("keep_alive"))
        told = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", "response": ""}
        if body.get("keep_alive") == 0:
            disk.loaded.discard(name)
            self._json(200, {**told, "done": True, "done_reason": "unload"})
        elif name in disk.embeds:
            raise Refused(400, {"error": f'"{body["model"]}" does not support generate'})
        else:
            self._load(name)
            self._json(200, {**told, "done": True, "done_reason": "load"})

    def ollama_embed(self, body: Json) -> None:
        self._load(_full(body["model"]))
        self._json(200, {"model": body["model"], "embeddings": []})

    def _load(self, name: str) -> None:
        if name in self.disk.too_large:
            words = "model requires more system memory (41.2 GiB) than is available (15.1 GiB)"
            raise Refused(500, {"error": words})
        self.disk.loaded.add(name)

    def _delete(self) -> None:
        data = self._body()
        if self.path != "/api/delete" or self.path in self.disk.no_routes:
            self._text(404, b"404 page not found")
            return
        name = _full(json.loads(data)["model"])
        if name not in self.disk.models:
            raise Refused(404, {"error": f"model '{name}' not found"})
        del self.disk.models[name]
        self.disk.loaded.discard(name)
        self.disk.deleted.append(name)
        self._text(200, b"")

    # -- the pull

    def ollama_pull(self, body: Json) -> None:
        disk, name = self.disk, _full(body["model"])
        disk.pulls.append(body["model"])
        fault = disk.faults.popleft() if disk.faults else ""
        if fault == "403":
            raise Refused(403, {"error": "forbidden"})
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            self._lines_of(name, fault)
        except OSError:
            disk.hung_up.set()
            self.close_connection = True

    def _lines_of(self, name: str, fault: str) -> None:
        disk = self.disk
        self._line({"status": "pulling manifest"})
        if name not in disk.registry:
            fault = fault or NO_FILE
        if fault in (NO_FILE, NO_NET):
            self._end({"error": fault})
            return
        for number, size in enumerate(disk.registry[name]):
            if not self._layer(f"sha256:{number}{abs(hash(name))}", size, fault):
                return
        self._line({"status": "verifying sha256 digest"})
        self._line({"status": "writing manifest"})
        disk.models[name] = sum(disk.registry[name])
        self._end({"status": "success"})

    def _layer(self, digest: str, size: int, fault: str) -> bool:
        """Fetch one; returns whether the pull goes on."""
        disk, step = self.disk, max(1, size // 8)
        head = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": size}
        done = disk.partial.get(digest, 0)
        self._line({**head, "completed": done} if done else head)  # zeros are left out
        while done < size:
            done = disk.partial[digest] = min(size, done + step)
            self._line({**head, "completed": done})
            if done < size // 2:
                continue
            until = time.monotonic() + HELD_S
            while not disk.held.wait(0.05) and time.monotonic() < until:
                self._line({**head, "completed": done})
            match fault:
                case "cut":
                    self.close_connection = True
                    self.wfile.write(b'7\r\n{"stat')
                    return False
                case "garbage":
                    self._raw(b"<html>502 Bad Gateway</html>\n")
                    return False
                case "endless":
                    self._raw(b"x" * (200 << 10))
                    return False
                case "":
                    continue
            self._end({"error": fault})
            return False
        return True

    def _line(self, told: Json) -> None:
        self._raw(json.dumps(told).encode() + b"\n")

    def _raw(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _end(self, told: Json) -> None:
        self._line(told)
        self.wfile.write(b"0\r\n\r\n")

    def _text(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def action(self, path: str) -> str:
        return "ollama_pull" if path == "/api/pull" else super().action(path)


class _StoreServer(ModelHttpServer):
    disk: OllamaDisk


@contextmanager
def ollama_disk(**given: Any) -> Iterator[OllamaDisk]:
    """Serve until the block ends."""
    server = _StoreServer(("127.0.0.1", 0), _Store)
    server.told = ModelServer(server.url, "")
    server.disk = OllamaDisk(server.url, **given)
    with serving(server):
        yield server.disk


def _full(name: str) -> str:
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
