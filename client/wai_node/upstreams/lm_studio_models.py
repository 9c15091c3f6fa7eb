"""LM Studio's models by its own API: `/api/v1/models/download`, `/load` and `/unload`.

A download is a job of LM Studio's: it goes on when nobody asks for it any more, and there is no
route that ends one, or that deletes a model's files.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import anyio
import msgspec

from wai_protocol.errors import Fault, RequestError, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json

from .lm_studio_lists import LmStudioModel, LmStudioModels
from .model_store import (
    ANSWER_LIMIT_BYTES,
    ASK_LIMIT_S,
    LOAD_LIMIT_S,
    Fetched,
    MayPass,
    ModelStore,
    Server,
    Stored,
    bounded_size,
    broke,
    said,
)

LOOK_EVERY_S: Final = 1.0  # at a job; LM Studio's own window shows no more
STILL_S: Final = 600.0  # a job that gets no byte for so long is given up, paused ones too
_PATH: Final = "/api/v1/models"
_NAME: Final = re.compile(
    r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?::[\w.-]{1,64})?", re.A
)
_JOB: Final = re.compile(r"[\w.-]{1,128}", re.A)
_HUB: Final = "https://huggingface.co/"
_UNEXPECTED: Final = "Unexpected endpoint"
_FULL: Final = re.compile(r"no space left|ENOSPC|not enough (?:disk )?space", re.I)
_DONE: Final = ("completed", "already_downloaded")

Status = Literal["downloading", "paused", "completed", "failed", "already_downloaded"]


class _Job(msgspec.Struct):
    """The answer to a download, and to a question about it."""

    status: Status
    job_id: str = ""
    total_size_bytes: int = 0
    downloaded_bytes: int = 0


class LmStudioStore(ModelStore):
    """The models of one LM Studio. `sleep` is replaced in tests."""

    full = _FULL
    takes_context = True
    takes_idle = False

    def __init__(
        self, upstream: Server, sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    ) -> None:
        super().__init__(upstream)
        self._sleep = sleep

    def publisher(self, name: str) -> str:
        """See `ModelStore`."""
        if _NAME.fullmatch(name) is None or ".." in name:
            raise RequestError(
                f"{name[:100]!r} is no model of LM Studio's; write publisher/model as its catalogue"
                " has it, or publisher/repository:QUANT for one on Hugging Face"
            )
        return name.split("/", 1)[0]

    async def find(self, name: str) -> Stored | None:
        """See `ModelStore`. Whether it has a repository's model is told by the download alone."""
        for entry in await self._list():
            if entry.key.lower() == name.lower():
                return _stored(entry)
        return None

    async def fetch(self, name: str, tell: Callable[[Fetched], None]) -> Stored:
        """See `ModelStore`. LM Studio goes on with a job that nobody waits for."""
        before = {entry.key for entry in await self._list()}
        repo, _, quant = name.partition(":")
        asked = {"model": _HUB + repo, "quantization": quant} if quant else {"model": repo}
        status, answer = await self._ask("POST", f"{_PATH}/download", asked)
        job = self._job(f"does not download {name}", status, answer)
        still_s = 0.0
        while job.status not in _DONE:
            if job.status == "failed":
                raise TransportError(
                    f"{self.upstream.name} failed to download {name}; its own log says why",
                    Fault.UPSTREAM_BROKE,
                )
            if still_s >= STILL_S:
                raise MayPass(f"{self.upstream.name} got nothing of {name} for {STILL_S:g} s")
            if _JOB.fullmatch(job.job_id) is None:
                raise broke(self.upstream, "downloads, and does not say by which job")
            total = bounded_size(job.total_size_bytes)
            tell(Fetched(min(bounded_size(job.downloaded_bytes), total), total))
            await self._sleep(LOOK_EVERY_S)
            path = f"{_PATH}/download/status/{job.job_id}"
            status, answer = await self._ask("GET", path, {})
            if status == 404:
                raise MayPass(f"{self.upstream.name} has forgotten the download of {name}")
            now = self._job(f"does not say how the download of {name} goes", status, answer)
            still_s = 0.0 if now.downloaded_bytes > job.downloaded_bytes else still_s + LOOK_EVERY_S
            job = msgspec.structs.replace(now, job_id=job.job_id)
        return self._which(name, before, await self._list())

    async def load(self, model: str, context_tokens: int | None, keep_s: float | None) -> None:
        """See `ModelStore`. How long it stays is LM Studio's own setting."""
        del keep_s
        asked: dict[str, Any] = {"model": model}
        if context_tokens is not None:
            asked["context_length"] = context_tokens
        loaded = [i for e in await self._list() if e.key == model for i in e.loaded_instances]
        contexts = [one.config.context_length for one in loaded if one.config is not None]
        if loaded and (context_tokens is None or context_tokens in contexts):
            return
        if loaded:  # a second load beside them would make one more instance
            await self.unload(model)
        status, answer = await self._ask("POST", f"{_PATH}/load", asked, LOAD_LIMIT_S)
        if status != 200 or _error(answer):
            raise self._refusal(f"does not load {model}", status, answer)

    async def unload(self, model: str) -> None:
        """See `ModelStore`: every instance of it."""
        for entry in await self._list():
            for instance in entry.loaded_instances if entry.key == model else ():
                asked = {"instance_id": instance.id}
                status, answer = await self._ask("POST", f"{_PATH}/unload", asked)
                if status != 404 and (status != 200 or _error(answer)):
                    raise self._refusal(f"does not unload {model}", status, answer)

    async def remove(self, model: str) -> None:
        """See `ModelStore`. Its files stay: no route deletes them."""
        await self.unload(model)

    def _which(self, name: str, before: set[str], now: list[LmStudioModel]) -> Stored:
        """The model that a finished download has brought. Its key is LM Studio's own."""
        repo = name.partition(":")[0].lower()
        last = repo.rsplit("/", 1)[-1].removesuffix("-gguf")
        new = [entry for entry in now if entry.key not in before]
        alike = [entry for entry in now if entry.key.lower() in (repo, last)]
        alike = alike or [entry for entry in new if last in entry.key.lower()] or new
        if len(alike) != 1:
            raise TransportError(
                f"{self.upstream.name} has {name}, and does not say by which id; the Nodes page"
                " lists the ids that it serves",
                Fault.UPSTREAM_BROKE,
            )
        return _stored(alike[0])

    async def _list(self) -> list[LmStudioModel]:
        return (await self.upstream.get_json(_PATH, LmStudioModels)).models

    def _job(self, what: str, status: int, answer: bytes) -> _Job:
        if status != 200 or _error(answer):
            raise self._refusal(what, status, answer)
        try:
            return read_json(answer, _Job, "a job", limit_bytes=ANSWER_LIMIT_BYTES)
        except ForeignJsonError as error:
            raise broke(self.upstream, f"{what}: {error.reason}") from error

    async def _ask(
        self, method: str, path: str, body: dict[str, Any], limit_s: float = ASK_LIMIT_S
    ) -> tuple[int, bytes]:
        data = msgspec.json.encode(body) if method == "POST" else b""
        return await self._send(method, path, data, limit_s)

    def _refusal(self, what: str, status: int, answer: bytes) -> WaiError:
        words = _error(answer)
        if _UNEXPECTED in words or (status == 404 and not words):
            return broke(self.upstream, "has no route for this: update LM Studio to 0.4 or newer")
        return self._refused(what, status, words)


def _stored(entry: LmStudioModel) -> Stored:
    return Stored(entry.key, bounded_size(entry.size_bytes or 0))


def _error(answer: bytes) -> str:
    """The error in an answer, which is a text or a map with one; "" if there is none."""
    try:
        told = read_json(answer, dict[str, Any], "an answer", limit_bytes=ANSWER_LIMIT_BYTES)
    except ForeignJsonError:
        return ""
    error = told.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return said(error) if isinstance(error, str) else ""
