"""Routes that owners of nodes have added: found by what the nodes tell. Pure.

A node forwards them whatever a relay thinks; a relay offers them where a node has them. The paths
that the relay answers itself never come here.
"""

from __future__ import annotations

from collections.abc import Iterable

from wai_protocol.surface import EXTRA_API, ROUTES, Route, Task, matches
from wai_relay.contracts.upstream import ServingNode


def extra_route_of(nodes: Iterable[ServingNode], method: str, path: str) -> Route | None:
    """The route by which some node has `path`; None where none has. The node checks the method."""
    if ROUTES.methods(path):
        return None
    for node in nodes:
        seen: set[str] = set()
        for model in node.status.models:
            if EXTRA_API not in model.apis or model.routes is None or model.upstream in seen:
                continue
            seen.add(model.upstream)
            for pattern in model.routes:
                if matches(pattern, path):
                    return Route(method, pattern, EXTRA_API, Task.READ, names_model=False)
    return None
