"""Ollama: many models on disk, loaded as asked for; a longer prompt is cut to the context."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any, ClassVar, Final

import msgspec

from wai_protocol.errors import WaiError

from .listener_process import environment_of_listener
from .upstream import Asker, Probe, Upstream

_THIS_MACHINE: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_PARALLEL: Final = re.compile(r"[1-9][0-9]{0,3}")


class _Model(msgspec.Struct):
    name: str
    context_length: int = 0


class _Models(msgspec.Struct):
    models: list[_Model] = []


class OllamaUpstream(Upstream):
    """An Ollama server, which tells neither its parallelism nor how busy it is.

    How many requests it works on at once is in its environment, which can be read where it runs on
    this machine as the same user.
    """

    kind: ClassVar[str] = "ollama"
    usual_ports = (11434,)
    apis = ("openai", "ollama")
    _was_up = False
    _parallel: int | None = None

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`."""
        tags = await asker.read("/api/tags", dict[str, Any])
        return bool(
            tags is not None and await asker.read("/api/version", dict[str, Any]) is not None
        )

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
        context = {m.name: m.context_length for m in loaded.models if m.context_length > 0}
        return Probe(
            self.models(
                [
                    replace(
                        self.model(m.name),
                        context_tokens=context.get(m.name),
                        slots_total=self.slots or self._parallel,
                    )
                    for m in on_disk.models
                ]
            )
        )

    async def _read_parallel(self) -> int | None:
        """`OLLAMA_NUM_PARALLEL` of the server on this machine; None where it is not to be known."""
        if self.origin.host not in _THIS_MACHINE:
            return None
        environment = await asyncio.to_thread(environment_of_listener, self.origin.port)
        told = environment.get("OLLAMA_NUM_PARALLEL", "")
        return int(told) if _PARALLEL.fullmatch(told) else None
