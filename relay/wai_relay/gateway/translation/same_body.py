"""Routes that take the same body and give the same answer under different paths. Pure.

Servers differ in which of them they have; a request by one that no node has goes by another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from wai_protocol.surface import ROUTES, Route
from wai_relay.contracts.upstream import ServingNode

_GROUPS: Final = (
    ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v2/rerank"),
    ("/v1/score", "/score"),
    ("/v1/chat/completions", "/api/v0/chat/completions"),
    ("/v1/completions", "/api/v0/completions"),
    ("/v1/embeddings", "/api/v0/embeddings"),
)
# OpenAI's own routes are what everything else goes by, so they need no other.
_OTHERS: Final = {
    path: tuple(other for other in group if other != path)
    for group in _GROUPS
    for path in group
    if path not in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
}


def route_that_is_there(route: Route, nodes: Iterable[ServingNode], models: Iterable[str]) -> Route:
    """`route`, or one that takes the same body where no node has `route` for any of `models`."""
    others = _OTHERS.get(route.path)
    if others is None:
        return route
    wanted = frozenset(models)
    served = [model for node in nodes for model in node.status.models if model.id in wanted]
    for path in (route.path, *others):
        found = ROUTES.find(route.method, path)
        assert found is not None
        if any(model.has_route(found.api, path) for model in served):
            return found
    return route
