"""Any server that speaks OpenAI's API: it needs no more than `GET /v1/models` to be served."""

from __future__ import annotations

from typing import ClassVar

from .upstream import Asker, ModelList, Probe, Upstream


class OpenAIUpstream(Upstream):
    """A server of an unknown make. Slots, context and load stay unknown."""

    kind: ClassVar[str] = "openai"

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`."""
        return await asker.read("/v1/models", ModelList) is not None

    async def probe(self) -> Probe:
        """The ids it lists."""
        listed = await self.get_json("/v1/models", ModelList)
        return Probe(self.models([self.model(entry.id) for entry in listed.data]))
