"""The node's allow-list: ours, and what this machine's owner has installed beside it."""

from __future__ import annotations

from typing import Final

from wai_protocol.errors import RequestError
from wai_protocol.surface import ROUTES, Route, RouteTable
from wai_transport.plugins import load_plugins

ENTRY_POINTS: Final = "wai.routes"


def installed_routes() -> RouteTable:
    """The routes that this node forwards. Packages add theirs by the entry-point group `wai.routes`
    (docs/extending.md); one that can't be used is left out. No relay can add to them."""
    routes = ROUTES

    def accept(plugin: object) -> None:
        nonlocal routes
        if not isinstance(plugin, list | tuple) or not all(isinstance(r, Route) for r in plugin):
            raise RequestError("It is not a list of `Route`.")
        routes = routes.extended(plugin)

    load_plugins(ENTRY_POINTS, accept)
    return routes
