"""Ollama's models by its own API: `/api/pull`, `/api/delete`, and `/api/generate` to load.

A pull answers 200 at once and tells its errors in the stream. It goes on from what a broken one
left, and ends when its connection is closed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault, RequestError, StoreError, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.http_request import Timeouts

from .answer_lines import MAX_LINE_BYTES, AnswerLines, Cut
from .model_store import (
    ANSWER_LIMIT_BYTES,
    ASK_LIMIT_S,
    LOAD_LIMIT_S,
    Fetched,
    MayPass,
    ModelStore,
    Stored,
    bounded_size,
    broke,
    said,
)

# Progress comes many times a second, but the check of a file's hash at the end is silent: half an
# hour is enough for 180 GB at 100 MB/s.
_PULLING: Final = Timeouts(connect_s=10.0, first_byte_s=60.0, between_s=1800.0)
MAX_LAYERS: Final = 256  # of one model; they have about five
_SUCCESS: Final = "success"
# [host/][namespace/]model[:tag], as Ollama's own parser takes them
_NAME: Final = re.compile(r"(?:[\w.-]{1,80}/){0,2}[A-Za-z0-9][\w.-]{0,79}(?::[\w.-]{1,80})?", re.A)
_CLOUD: Final = re.compile(r"[:-]cloud$", re.I)
_LATEST: Final = ":latest"
# Errors of the way to the registry, in the words of Go's net package and of Ollama.
_PASSING: Final = re.compile(
    r"dial tcp|i/o timeout|connection re(?:set|fused)|\bEOF\b|no such host|max retries exceeded"
    r"|TLS handshake|timeout awaiting|context (?:canceled|deadline exceeded)|digest mismatch"
    r"|\b(?:429|50[0234])\b",
    re.I,
)
_FULL: Final = re.compile(r"no space left|disk quota|not enough space", re.I)
_UNKNOWN: Final = re.compile(r"manifest.*(?:file does not exist|not found|unknown)", re.I)


class _Line(msgspec.Struct):
    """One line of the answer to `/api/pull`."""

    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str = ""


class _Error(msgspec.Struct):
    error: str


class _Listed(msgspec.Struct):
    name: str
    size: int = 0


class _Tags(msgspec.Struct):
    models: list[_Listed] | None = None


class OllamaModels(ModelStore):
    """The models of one Ollama."""

    full = _FULL

    def publisher(self, name: str) -> str:
        """See `ModelStore`. Names without a publisher are of Ollama's own library."""
        if _NAME.fullmatch(name) is None or ".." in name:
            raise RequestError(
                f"{name[:100]!r} is no name of a model of Ollama's; write NAME[:TAG], as qwen3:8b"
            )
        if _CLOUD.search(name):
            raise RequestError(f"{name} runs at ollama.com, and not on this node")
        parts = name.split("/")
        return "library" if len(parts) == 1 else parts[-2]

    async def find(self, name: str) -> Stored | None:
        """See `ModelStore`."""
        tags = await self.upstream.get_json("/api/tags", _Tags)
        wanted = _full(name)
        for listed in tags.models or []:
            if _full(listed.name) == wanted:
                return Stored(listed.name, bounded_size(listed.size))
        return None

    async def fetch(self, name: str, tell: Callable[[Fetched], None]) -> Stored:
        """See `ModelStore`. To close the connection ends the pull."""
        layers: dict[str, tuple[int, int]] = {}
        ended = False
        async with aclosing(self._pull(name)) as lines:
            async for line in lines:
                if line.error:
                    raise self._error(name, line.error)
                ended = ended or line.status == _SUCCESS
                if line.digest and (line.digest in layers or len(layers) < MAX_LAYERS):
                    total = bounded_size(line.total)
                    layers[line.digest] = (min(bounded_size(line.completed), total), total)
                    done = sum(layer[0] for layer in layers.values())
                    tell(Fetched(done, sum(layer[1] for layer in layers.values())))
        if not ended:
            raise MayPass(f"{self.upstream.name} ended the pull of {name} before it was done")
        stored = await self.find(name)
        if stored is None:
            raise broke(self.upstream, f"has pulled {name}, and does not list it")
        return stored

    async def load(self, model: str, context_tokens: int | None, keep_s: float | None) -> None:
        """See `ModelStore`. A model for embeddings is loaded by asking for none."""
        keep: dict[str, Any] = {} if keep_s is None else {"keep_alive": f"{keep_s:g}s"}
        status, answer = await self._ask("POST", "/api/generate", {"model": model, **keep})
        if status == 400 and b"does not support generate" in answer:
            body = {"model": model, "input": [], **keep}
            status, answer = await self._ask("POST", "/api/embed", body)
        if status != 200:
            raise self._refusal(f"does not load {model}", status, answer)

    async def unload(self, model: str) -> None:
        """See `ModelStore`."""
        body = {"model": model, "keep_alive": 0}
        status, answer = await self._ask("POST", "/api/generate", body)
        if status != 200:
            raise self._refusal(f"does not unload {model}", status, answer)

    async def remove(self, model: str) -> None:
        """See `ModelStore`."""
        status, answer = await self._ask("DELETE", "/api/delete", {"model": model})
        if status == 404 and _text(answer):
            return  # with an error of Ollama's: it has no such model
        if status != 200:
            raise self._refusal(f"does not delete {model}", status, answer)

    async def _pull(self, name: str) -> AsyncGenerator[_Line, None]:
        """The lines of a pull's answer. The connection is closed when this is."""
        upstream = self.upstream
        upstream.check()
        body = msgspec.json.encode({"model": name, "stream": True})
        headers = [*upstream.authorization, (b"content-type", b"application/json")]
        answer = AnswerLines()
        request = answer.request = upstream.client.request(
            *("POST", upstream.base_path + "/api/pull", headers, answer),
            body_length=len(body),
            timeouts=_PULLING,
        )
        try:
            request.write(body)
            request.end()
            if await answer.head() != 200:
                raise self._refusal(f"does not pull {name}", answer.status, await answer.rest())
            async for line in answer:
                yield self._line(line)
        except Cut as error:
            raise MayPass(str(error), error.fault) from error
        finally:
            request.close()

    def _line(self, line: bytes) -> _Line:
        try:
            return read_json(line, _Line, "a line of progress", limit_bytes=MAX_LINE_BYTES)
        except ForeignJsonError as error:
            raise broke(self.upstream, f"sends progress that is none: {error.reason}") from error

    async def _ask(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        loads = path != "/api/delete" and body.get("keep_alive") != 0
        data = msgspec.json.encode(_whole(body))
        return await self._send(method, path, data, LOAD_LIMIT_S if loads else ASK_LIMIT_S)

    def _error(self, name: str, text: str) -> WaiError:
        """The error that a line of the stream tells of."""
        words = said(text)
        if _FULL.search(text):
            return StoreError(
                f"the disk of {self.upstream.name} is full ({words}): make room there, or deploy a"
                " smaller model; what was pulled of it is kept"
            )
        if _UNKNOWN.search(text):
            return RequestError(
                f"Ollama's registry has no {name} ({words}); look for its name and tag at"
                " ollama.com/library",
                Fault.NOT_FOUND,
            )
        kind = MayPass if _PASSING.search(text) else TransportError
        message = f"{self.upstream.name} could not pull {name}: {words}"
        return kind(message, Fault.UPSTREAM_BROKE)

    def _refusal(self, what: str, status: int, answer: bytes) -> WaiError:
        words = _text(answer)
        if status == 404 and not words:
            return broke(self.upstream, "has no route for this: update Ollama")
        return self._refused(what, status, words)


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    """`body`, with older Ollama's word for the model too, and to be answered in one piece."""
    return {**body, "name": body["model"], "stream": False}


def _text(answer: bytes) -> str:
    """The error in an answer of Ollama's; "" if it is none of its."""
    try:
        return said(read_json(answer, _Error, "an error", limit_bytes=ANSWER_LIMIT_BYTES).error)
    except ForeignJsonError:
        return ""


def _full(name: str) -> str:
    """A name as it can be compared: with its tag, in one case."""
    tagged = name if ":" in name.rsplit("/", 1)[-1] else name + _LATEST
    return tagged.lower()
