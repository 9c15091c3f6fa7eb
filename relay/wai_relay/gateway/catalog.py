"""What is served, merged over the nodes: for the lists that the dialects make of it. Pure.

Made from what the nodes have pushed, so that a list costs no round trip and a sleeping node can't
hold it up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from wai_protocol.status import COMPLETION, EMBEDDING, ModelStatus
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.upstream import ServingNode


class CatalogModel(msgspec.Struct):
    """One model name, wherever it is served. `context_tokens` is the most that any node offers,
    `loaded` whether it is in memory anywhere, None if no node tells."""

    id: str
    ready: bool = False
    nodes: list[str] = msgspec.field(default_factory=list)
    apis: set[str] = msgspec.field(default_factory=set)
    context_tokens: int | None = None
    capabilities: set[str] = msgspec.field(default_factory=set)
    aliases: set[str] = msgspec.field(default_factory=set)
    loaded: bool | None = None
    size_bytes: int | None = None

    @property
    def kind(self) -> str:
        """What it is for: "embedding", or "chat" where nothing else is known."""
        embeds = EMBEDDING in self.capabilities and COMPLETION not in self.capabilities
        return "embedding" if embeds else "chat"

    def add(self, node: ServingNode, model: ModelStatus) -> None:
        """`node` has it too."""
        self.ready = self.ready or (node.ready and model.ready)
        if node.name not in self.nodes:
            self.nodes.append(node.name)
        self.apis.update(model.apis)
        if model.context_tokens is not None:
            self.context_tokens = max(self.context_tokens or 0, model.context_tokens)
        self.capabilities.update(model.capabilities)
        self.aliases.update(model.aliases)
        if model.loaded is not None:
            self.loaded = self.loaded or model.loaded
        self.size_bytes = self.size_bytes or model.size_bytes


class Catalog(msgspec.Struct, frozen=True):
    """What one caller may know of: `nodes` by `key`, with `pin` that node only. `created` is a time
    for entries that need one, in seconds since 1970. `translated`: every API reaches all models."""

    nodes: Iterable[ServingNode]
    key: ApiKey
    aliases: Mapping[str, str]
    pin: str | None
    created: int
    translated: bool = False
    resolve: Callable[[str], str] = str
    """The model that another name stands for."""

    def models(self, api: str | None = None) -> list[CatalogModel]:
        """The models, by name; with `api` only those that can be asked by it."""
        api = None if self.translated else api
        return listed_models(self.nodes, self.key, self.aliases, pin=self.pin, api=api)

    def find(self, name: str) -> CatalogModel | None:
        """The model that a request may call `name`."""
        models = {model.id: model for model in self.models()}
        return models.get(name) or models.get(self.resolve(name))


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
