"""Ollama: many models on disk, loaded as asked for; a longer prompt is cut to the context."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any, ClassVar, Final

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_protocol.status import OLLAMA_WORDS, ModelStatus
from wai_transport.http_request import Timeouts

from .listener_process import environment_of_listener
from .model_store import ModelStore
from .ollama_models import OllamaModels
from .upstream import PROBE_LIMIT_BYTES, Asker, Probe, Upstream

_THIS_MACHINE: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_LATEST: Final = ":latest"
_SHOWN_AT_A_TIME: Final = 8
_PARALLEL: Final = re.compile(r"[1-9][0-9]{0,3}")


class _Model(msgspec.Struct):
    name: str
    digest: str = ""
    size: int = 0
    context_length: int = 0


class _Models(msgspec.Struct):
    models: list[_Model] = []


class _Tags(msgspec.Struct):
    """The answer to `/api/tags` of an Ollama, and of nothing else."""

    models: list[_Model] | None


class _Version(msgspec.Struct):
    """The answer to `/api/version`."""

    version: str


class _Shown(msgspec.Struct):
    """The answer to `/api/show`."""

    capabilities: list[str] = []
    model_info: dict[str, Any] = {}

    @property
    def context_tokens(self) -> int | None:
        """The longest context that the model was made for."""
        for name, value in self.model_info.items():
            if name.endswith(".context_length") and type(value) is int and value > 0:
                return value
        return None


class OllamaUpstream(Upstream):
    """An Ollama server, which tells neither its parallelism nor how busy it is.

    How many requests it works on at once is in its environment, which can be read where it runs on
    this machine as the same user.
    """

    kind: ClassVar[str] = "ollama"
    usual_ports = (11434,)
    word = "ollama"
    apis = ("openai", "ollama")
    _was_up = False
    _parallel: int | None = None

    def __init__(self, url: str, key: str = "", *, timeouts: Timeouts | None = None) -> None:
        super().__init__(url, key, timeouts=timeouts)
        self._shown: dict[str, _Shown] = {}

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`. LM Studio answers 200 to any path, with an error."""
        tags = await asker.read("/api/tags", _Tags)
        return tags is not None and await asker.read("/api/version", _Version) is not None

    def store(self) -> ModelStore:
        """See `Upstream`."""
        return OllamaModels(self)

    async def probe(self) -> Probe:
        """All models on disk; the context is known of those that are loaded."""
        try:
            on_disk = await self.get_json("/api/tags", _Models)
            loaded = await self.get_json("/api/ps", _Models)
        except WaiError:
            self._was_up = False  # the next one to answer may have been started otherwise
            raise
        if not self._was_up:
            self._parallel = await self._read_parallel()
            self._was_up = True
        await self._show_new(on_disk.models)
        context = {m.name: m.context_length for m in loaded.models}
        return Probe(self.models([self._told(model, context) for model in on_disk.models]))

    def _told(self, model: _Model, loaded: dict[str, int]) -> ModelStatus:
        shown = self._shown.get(model.digest or model.name) or _Shown()
        name = model.name
        return replace(
            self.model(name),
            context_tokens=loaded.get(name) or None,
            largest_context_tokens=shown.context_tokens,
            slots_total=self.slots or self._parallel,
            capabilities=tuple(word for word in shown.capabilities if word in OLLAMA_WORDS),
            aliases=(name.removesuffix(_LATEST),) if name.endswith(_LATEST) else (),
            loaded=name in loaded,
            size_bytes=model.size,
        )

    async def _show_new(self, models: list[_Model]) -> None:
        """Ask what the models can do that were not asked for yet; a few at a time, as each has its
        file read."""
        known = {model.digest or model.name for model in models}
        self._shown = {name: shown for name, shown in self._shown.items() if name in known}
        new = [model for model in models if (model.digest or model.name) not in self._shown]
        for model in new[:_SHOWN_AT_A_TIME]:
            body = msgspec.json.encode({"model": model.name})
            try:
                status, answer = await self.ask("POST", "/api/show", body)
            except WaiError:
                return  # it serves all the same; the next poll asks again
            shown = _Shown()
            if status == 200:
                with contextlib.suppress(ForeignJsonError):
                    shown = read_json(
                        *(answer, _Shown, "the answer to /api/show"), limit_bytes=PROBE_LIMIT_BYTES
                    )
            self._shown[model.digest or model.name] = shown

    async def _read_parallel(self) -> int | None:
        """`OLLAMA_NUM_PARALLEL` of the server on this machine; None where it is not to be known."""
        if self.origin.host not in _THIS_MACHINE:
            return None
        environment = await asyncio.to_thread(environment_of_listener, self.origin.port)
        told = environment.get("OLLAMA_NUM_PARALLEL", "")
        return int(told) if _PARALLEL.fullmatch(told) else None
