"""Any server that speaks OpenAI's API: it needs no more than `GET /v1/models` to be served."""

from __future__ import annotations

from typing import ClassVar

from .upstream import ModelList, Probe, Upstream


class OpenAIUpstream(Upstream):
    """A server of an unknown make. Slots, context and load stay unknown."""

    kind: ClassVar[str] = "openai"

    async def probe(self) -> Probe:
        """The ids it lists."""
        listed = await self.get_json("/v1/models", ModelList)
        return Probe(self.models([self.model(entry.id) for entry in listed.data]))
