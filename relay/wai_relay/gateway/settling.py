"""Patience after a start: the nodes of the relay before us are on their way.

A relay that took over, or was just restarted, knows its nodes by name but has not heard from them
yet. For a moment, "nobody serves this" means "not yet", so a request that would be refused for lack
of a node waits for the next one that arrives. Everything else is the inner dispatcher's.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from wai_protocol.errors import Fault, WaiError
from wai_relay.fleet.nodes import ConnectedFleet

from .dispatch import Dispatcher, Lease, RequestInfo

_NOT_YET: Final = frozenset({Fault.NO_NODE, Fault.MODEL_NOT_FOUND})


class SettlingDispatcher:
    """A `Dispatcher` that asks `inner` again while `fleet` is settling."""

    def __init__(self, inner: Dispatcher, fleet: ConnectedFleet) -> None:
        self._inner = inner
        self._fleet = fleet

    async def acquire(self, info: RequestInfo) -> Lease:
        """See `Dispatcher`."""
        while True:
            arrival: asyncio.Event | None = self._fleet.arrival
            try:
                return await self._inner.acquire(info)
            except WaiError as error:
                if arrival is None or error.fault not in _NOT_YET:
                    raise
            await arrival.wait()
            info = replace(info, again=True)  # it counts as one request
