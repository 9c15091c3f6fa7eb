"""Ollama: many models on disk, loaded as asked for; a longer prompt is cut to the context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from .upstream import Asker, Probe, Upstream


class _Model(msgspec.Struct):
    name: str
    context_length: int = 0


class _Models(msgspec.Struct):
    models: list[_Model] = []


class OllamaUpstream(Upstream):
    """An Ollama server, which tells neither its parallelism nor how busy it is."""

    kind: ClassVar[str] = "ollama"
    usual_ports = (11434,)
    apis = ("openai", "ollama")

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`."""
        tags = await asker.read("/api/tags", dict[str, Any])
        return bool(
            tags is not None and await asker.read("/api/version", dict[str, Any]) is not None
        )

    async def probe(self) -> Probe:
        """All models on disk; the context is known of those that are loaded."""
        on_disk = await self.get_json("/api/tags", _Models)
        loaded = await self.get_json("/api/ps", _Models)
        context = {m.name: m.context_length for m in loaded.models if m.context_length > 0}
        return Probe(
            self.models(
                [
                    replace(self.model(m.name), context_tokens=context.get(m.name))
                    for m in on_disk.models
                ]
            )
        )
