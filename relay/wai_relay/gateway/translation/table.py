"""Which routes can be translated, and when they are. Pure.

A request is translated only where none of the nodes that may serve it has its route. So what an
upstream has is always passed through as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.status import ModelStatus
from wai_protocol.surface import OPENAI_API, Route
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.upstream import ServingNode
from wai_relay.gateway.lately import Lately
from wai_relay.gateway.raw_json import value_of

from .local_answers import LOCAL_ANSWERS
from .messages import MessagesTranslation
from .ollama import (
    OllamaChatTranslation,
    OllamaEmbeddingsTranslation,
    OllamaEmbedTranslation,
    OllamaGenerateTranslation,
)
from .responses import ResponsesTranslation
from .translation import CHAT_ROUTE, Asked, Body, Translation

_TRANSLATIONS: Final[dict[str, type[Translation]]] = {
    "/v1/messages": MessagesTranslation,
    "/v1/responses": ResponsesTranslation,
    "/api/chat": OllamaChatTranslation,
    "/api/generate": OllamaGenerateTranslation,
    "/api/embed": OllamaEmbedTranslation,
    "/api/embeddings": OllamaEmbeddingsTranslation,
}


def is_translated(
    route: Route,
    nodes: Iterable[ServingNode],
    key: ApiKey,
    models: Collection[str],
    pin: str | None,
    misses: Lately,
) -> bool:
    """Whether a request for one of `models` must be translated: its `route` can be, no node that
    `key` may use has it, and one has chat completions. Nodes that have it and are not ready now
    are waited for, unless another one is ready."""
    if route.path not in _TRANSLATIONS and route.path not in LOCAL_ANSWERS:
        return False
    limits = key.limits
    possible = ready = away = False
    for node in nodes:
        if pin not in (None, node.name) or (limits.nodes and node.name not in limits.nodes):
            continue
        if limits.local_only and node.kind != "node":
            continue
        for model in node.status.models:
            if model.id not in models:
                continue
            is_ready = node.ready and model.ready
            if has_route(model, route) and not misses.knows(node.name, route.path):
                if is_ready:
                    return False
                away = True
            elif model.has_route(OPENAI_API, _upstream_path(route)):
                possible, ready = True, ready or is_ready
    return ready if away else possible


def _upstream_path(route: Route) -> str:
    """By what the model's server is asked in place of `route`."""
    translation = _TRANSLATIONS.get(route.path)
    return (translation.upstream if translation is not None else CHAT_ROUTE).path


def is_translatable(route: Route) -> bool:
    """Whether a request of `route` can become a request of another route."""
    return route.path in _TRANSLATIONS


def has_route(model: ModelStatus, route: Route) -> bool:
    """Whether the model's server has `route` itself, as far as is known."""
    return model.has_route(route.api, route.path)


def local_answer(route: Route, data: bytes, asked: Asked) -> bytes | None:
    """The relay's own answer to a request of a translated route, None where a model answers it."""
    make = LOCAL_ANSWERS.get(route.path)
    return None if make is None else make(_object(data), asked)


def translation_of(route: Route, data: bytes, asked: Asked) -> Translation:
    """The translation of the request `data`. Raises `RequestError` where there is none."""
    return _TRANSLATIONS[route.path](_object(data), asked)


def _object(data: bytes) -> Body:
    found = value_of(msgspec.Raw(data))
    if not isinstance(found, dict):
        raise RequestError("The request body must be a JSON object.")
    return found
