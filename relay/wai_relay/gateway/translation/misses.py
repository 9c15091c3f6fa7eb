"""Which upstreams turned out to lack a route that they were taken to have. Pure.

Of providers, of nodes of older versions and of servers that don't let us know it is only known
which dialects they speak. The first request finds out that a route is missing, and is then
translated. This is remembered of each upstream and path (`gateway.lately`).
"""

from __future__ import annotations

from typing import Final

FORGOTTEN_AFTER_S: Final = 600.0
"""A server that was upgraded may have the route."""

MISSING_STATUSES: Final = frozenset({404, 405, 501})
"""How a server says that it has no such route: one that answers GET for any path says 405 to a
POST. With 404 it may mean the model, too."""
