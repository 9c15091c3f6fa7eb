"""An LM Studio 0.4 that downloads, loads and unloads by its `/api/v1/models/*`, and how it fails.

It answers 200 with an error to what it does not know, gives a downloaded repository a key of its
own, and has no route that deletes or that ends a download.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from .model_servers import Json, LmStudioHandler, ModelHttpServer, ModelServer, Refused
from .threaded_server import serving

HUB: Final = "https://huggingface.co/"


@dataclass
class LmStudioDisk:
    """`catalogue`: what can be downloaded, with its key and size; `jobs`: what a job's next answers
    say ("downloading", "paused", "failed", "gone"; then completed)."""

    url: str = ""
    catalogue: dict[str, tuple[str, int]] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    loaded: dict[str, list[int]] = field(default_factory=dict)
    answers: deque[str] = field(default_factory=deque)
    asked: list[tuple[str, Json]] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    old: bool = False


class _Store(LmStudioHandler):
    server: _StoreServer
    posts = (
        *LmStudioHandler.posts,
        *("/api/v1/models/download", "/api/v1/models/load", "/api/v1/models/unload"),
    )

    @property
    def disk(self) -> LmStudioDisk:
        return self.server.disk

    def get(self) -> None:
        job = self.path.removeprefix("/api/v1/models/download/status/")
        if job != self.path and not self.disk.old:
            self._tell(job)
        elif self.path == "/api/v1/models":
            self._json(200, {"models": [self._entry(key) for key in self.disk.models]})
        elif self.path == "/v1/models":
            data = [{"id": key, "object": "model"} for key in self.disk.models]
            self._json(200, {"object": "list", "data": data})
        else:
            self.unknown()

    def check(self, body: Json) -> None:
        if not self.path.startswith("/api/v1/models/"):
            super().check(body)

    def _post(self) -> None:
        if self.disk.old and self.path.startswith("/api/v1/models/"):
            self._body()
            self.unknown()
            return
        super()._post()

    def action(self, path: str) -> str:
        head, _, last = path.rpartition("/")
        return f"{last}_model" if head == "/api/v1/models" else super().action(path)

    def _entry(self, key: str) -> Json:
        contexts = self.disk.loaded.get(key, [])
        loaded = [
            {"id": key if n == 0 else f"{key}:{n + 1}", "config": {"context_length": context}}
            for n, context in enumerate(contexts)
        ]
        told: Json = {"type": "llm", "publisher": "p", "key": key, "display_name": key}
        told |= {"loaded_instances": loaded, "max_context_length": 131072}
        return {**told, "size_bytes": self.disk.models[key]}

    def download_model(self, body: Json) -> None:
        disk = self.disk
        disk.asked.append(("download", body))
        name = body["model"].removeprefix(HUB)
        if name not in disk.catalogue:
            raise Refused(404, _error("model_not_found", f"Model '{name}' was not found"))
        if disk.catalogue[name][0] in disk.models:
            self._json(200, {"status": "already_downloaded"})
            return
        job = f"job_{len(disk.jobs)}"
        disk.jobs[job] = name
        self._json(200, {"job_id": job, **self._state(name, 0.0)})

    def _tell(self, job: str) -> None:
        disk = self.disk
        answer = disk.answers.popleft() if disk.answers else "completed"
        if answer == "gone" or job not in disk.jobs:
            self._json(404, _error("job_not_found", f"Job '{job}' was not found"))
            return
        name = disk.jobs[job]
        key, size = disk.catalogue[name]
        if answer == "completed":
            disk.models[key] = size
            told = {"status": "completed", "total_size_bytes": size, "downloaded_bytes": size}
        else:
            told = {**self._state(name, 0.5), "status": answer}
        self._json(200, {"job_id": job, **told})

    def _state(self, name: str, share: float) -> Json:
        size = self.disk.catalogue[name][1]
        told = {"status": "downloading", "total_size_bytes": size}
        return {**told, "downloaded_bytes": int(size * share), "bytes_per_second": 7834.7}

    def load_model(self, body: Json) -> None:
        self.disk.asked.append(("load", body))
        key = body["model"]
        if key not in self.disk.models:
            raise Refused(404, _error("model_not_found", f"Model '{key}' was not found"))
        self.disk.loaded.setdefault(key, []).append(body.get("context_length", 4096))
        told = {"type": "llm", "instance_id": key, "load_time_seconds": 0.1, "status": "loaded"}
        self._json(200, told)

    def unload_model(self, body: Json) -> None:
        self.disk.asked.append(("unload", body))
        key = body["instance_id"].partition(":")[0]
        if not self.disk.loaded.get(key):
            raise Refused(404, _error("model_not_found", "No such instance"))
        self.disk.loaded[key].pop()
        self._json(200, {"instance_id": body["instance_id"]})


class _StoreServer(ModelHttpServer):
    disk: LmStudioDisk


@contextmanager
def lm_studio_disk(**given: Any) -> Iterator[LmStudioDisk]:
    """Serve until the block ends."""
    server = _StoreServer(("127.0.0.1", 0), _Store)
    server.told = ModelServer(server.url, "")
    server.disk = LmStudioDisk(server.url, **given)
    with serving(server):
        yield server.disk


def _error(code: str, message: str) -> Json:
    return {"error": {"type": "invalid_request", "code": code, "message": message}}
