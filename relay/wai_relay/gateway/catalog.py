"""What is served, merged over the nodes: `/v1/models`, Ollama's `/api/tags` and `/api/ps`. Pure.

Made from what the nodes have pushed, so that a list costs no round trip and a sleeping node can't
hold it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wai_protocol.status import ModelStatus
from wai_relay.access.keys import ApiKey
from wai_relay.contracts.upstream import ServingNode


@dataclass(slots=True)
class CatalogModel:
    """One model name, wherever it is served. `context_tokens` is the most that any node offers."""

    id: str
    ready: bool = False
    nodes: list[str] = field(default_factory=list)
    apis: set[str] = field(default_factory=set)
    context_tokens: int | None = None

    def add(self, node: ServingNode, model: ModelStatus) -> None:
        """`node` has it too."""
        self.ready = self.ready or (node.ready and model.ready)
        if node.name not in self.nodes:
            self.nodes.append(node.name)
        self.apis.update(model.apis)
        if model.context_tokens is not None:
            self.context_tokens = max(self.context_tokens or 0, model.context_tokens)


def listed_models(
    nodes: Iterable[ServingNode],
    key: ApiKey,
    aliases: Mapping[str, str] | None = None,
    *,
    pin: str | None = None,
    api: str | None = None,
) -> list[CatalogModel]:
    """The models that `key` may use, and the `aliases` of them, by name; with `pin` on that node
    only, with `api` only those that speak it."""
    found: dict[str, CatalogModel] = {}
    allowed = key.limits
    names = _names_of(aliases or {})
    for node in nodes:
        if (allowed.nodes and node.name not in allowed.nodes) or pin not in (None, node.name):
            continue
        if allowed.local_only and node.kind != "node":
            continue
        for model in node.status.models:
            if api is not None and api not in model.apis:
                continue
            for name in (model.id, *names.get(model.id, ())):
                if not allowed.models or {name, model.id} & {*allowed.models}:
                    found.setdefault(name, CatalogModel(name)).add(node, model)
    return [found[name] for name in sorted(found)]


def _names_of(aliases: Mapping[str, str]) -> dict[str, list[str]]:
    """The aliases of each model."""
    names: dict[str, list[str]] = {}
    for name, model in aliases.items():
        names.setdefault(model, []).append(name)
    return names


def openai_model(model: CatalogModel, created: int) -> dict[str, Any]:
    """An entry of OpenAI's list, with what Anthropic's has besides, and ours under `wai`."""
    return {
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": "wai",
        "type": "model",
        "display_name": model.id,
        "wai": {
            "ready": model.ready,
            "nodes": model.nodes,
            "context_tokens": model.context_tokens,
            "apis": sorted(model.apis),
        },
    }


def openai_list(models: Iterable[CatalogModel], created: int) -> dict[str, Any]:
    """`GET /v1/models`; `has_more` is what Anthropic's SDK pages by."""
    data = [openai_model(model, created) for model in models]
    return {"object": "list", "data": data, "has_more": False}


def ollama_tags(models: Iterable[CatalogModel]) -> dict[str, Any]:
    """`GET /api/tags`."""
    return {"models": [_ollama_model(model) for model in models]}


def ollama_ps(models: Iterable[CatalogModel]) -> dict[str, Any]:
    """`GET /api/ps`: the ones that are loaded."""
    running = (model for model in models if model.ready)
    return {
        "models": [
            _ollama_model(model) | {"size_vram": 0, "context_length": model.context_tokens or 0}
            for model in running
        ]
    }


def _ollama_model(model: CatalogModel) -> dict[str, Any]:
    # Size and digest are the box's business; their clients want the fields.
    return {"name": model.id, "model": model.id, "size": 0, "digest": "", "details": {}}
