"""What LM Studio tells of its models: the answer to `GET /api/v1/models`."""

from __future__ import annotations

from typing import Any

import msgspec


class LoadedConfig(msgspec.Struct):
    """How a model was loaded."""

    context_length: int | None = None
    parallel: int | None = None


class LoadedInstance(msgspec.Struct):
    """A model that is loaded; one may be loaded more than once."""

    id: str = ""
    config: LoadedConfig | None = None


class LmStudioModel(msgspec.Struct):
    """One model of LM Studio's list."""

    key: str
    type: str = "llm"
    size_bytes: int | None = None
    capabilities: dict[str, Any] | None = None
    loaded_instances: list[LoadedInstance] = []
    max_context_length: int | None = None


class LmStudioModels(msgspec.Struct):
    """The body of `GET /api/v1/models`."""

    models: list[LmStudioModel]
