"""Which upstreams turned out to lack a route that they were taken to have. Pure.

STATUS tells dialects and not routes, so that a server with chat completions may lack
`/v1/responses`. The first request finds that out, and is then translated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from wai_protocol.surface import Route

FORGOTTEN_AFTER_S: Final = 600.0
"""A server that was upgraded may have the route."""

MISSING_STATUSES: Final = frozenset({404, 501})
"""How a server says that it has no such route. With 404 it may mean the model, too."""


class RouteMisses:
    """Remembers them for a while. There are at most as many as nodes and routes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[tuple[str, str], float] = {}

    def note(self, node: str, route: Route) -> None:
        """`node` answered that it has no `route`."""
        self._until[node, route.path] = self._clock() + FORGOTTEN_AFTER_S

    def knows(self, node: str, route: Route) -> bool:
        """Whether `node` lacked `route` lately."""
        until = self._until.get((node, route.path))
        if until is None:
            return False
        if until <= self._clock():
            del self._until[node, route.path]
            return False
        return True
