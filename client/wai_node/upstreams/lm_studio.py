"""LM Studio: models on disk and loaded instances, told by its own REST API."""

from __future__ import annotations

from typing import ClassVar

from msgspec.structs import replace

from wai_protocol.status import COMPLETION, EMBEDDING, TOOLS, VISION

from .found_routes import Way
from .lm_studio_lists import LmStudioModel, LmStudioModels, LoadedConfig
from .lm_studio_models import LmStudioStore
from .model_store import ModelStore
from .upstream import Asker, Probe, Upstream


class LmStudioUpstream(Upstream):
    """An LM Studio server. It loads a model when it is asked for (unless its user forbids that)."""

    kind: ClassVar[str] = "lm-studio"
    usual_ports = (1234,)
    word = "lmstudio"
    apis = ("openai", "lm-studio")
    way = Way.BY_BODY

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """See `Upstream`."""
        return await asker.read("/api/v1/models", LmStudioModels) is not None

    def store(self) -> ModelStore:
        """See `Upstream`."""
        return LmStudioStore(self)

    async def probe(self) -> Probe:
        """Every model; context and slots of the first instance that is loaded."""
        listed = await self.get_json("/api/v1/models", LmStudioModels)
        models = []
        for entry in listed.models:
            loaded = entry.loaded_instances[0].config if entry.loaded_instances else None
            config = loaded or LoadedConfig(context_length=entry.max_context_length)
            models.append(
                replace(
                    self.model(entry.key),
                    context_tokens=config.context_length,
                    slots_total=config.parallel,
                    largest_context_tokens=entry.max_context_length,
                    capabilities=_words(entry),
                    loaded=bool(entry.loaded_instances),
                    size_bytes=entry.size_bytes,
                )
            )
        return Probe(self.models(models))


def _words(model: LmStudioModel) -> tuple[str, ...]:
    """What the model can do, in the words of STATUS."""
    if model.type == "embedding":
        return (EMBEDDING,)
    told = model.capabilities or {}
    words = [COMPLETION]
    words += [VISION] if told.get("vision") is True else []
    words += [TOOLS] if told.get("trained_for_tool_use") is True else []
    return tuple(words)
