"""Patience after a start: the nodes of the relay before us are on their way.

A relay that took over, or was just restarted, knows its nodes by name but has not heard from them
yet. For a moment, "nobody serves this" means "not yet", so a request that would be refused for lack
of a node waits for the next one that arrives. After that, while a node is still missing or has not
told what it serves, a model that nobody serves is "not now" and not "no such model". Everything
else is the inner dispatcher's.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from wai_protocol.errors import Fault, NodeUnavailable, WaiError

from .dispatch import Dispatcher, Lease, RequestInfo

RETRY_AFTER_S: Final = 10.0
"""A node that found its relay down for minutes dials about so often."""

_NOT_YET: Final = frozenset({Fault.NO_NODE, Fault.MODEL_NOT_FOUND})


class ArrivingFleet(Protocol):
    """What is asked of the nodes (`fleet.nodes.ConnectedFleet`)."""

    @property
    def arrival(self) -> asyncio.Event | None:
        """Set when the next node has come; None once nobody is awaited any more."""

    @property
    def missing(self) -> int:
        """How many nodes may serve a model that nobody is known to serve."""


class SettlingDispatcher:
    """A `Dispatcher` that asks `inner` again while `fleet` is settling."""

    def __init__(self, inner: Dispatcher, fleet: ArrivingFleet) -> None:
        self._inner = inner
        self._fleet = fleet

    async def acquire(self, info: RequestInfo) -> Lease:
        """See `Dispatcher`."""
        while True:
            arrival: asyncio.Event | None = self._fleet.arrival
            try:
                return await self._inner.acquire(info)
            except WaiError as error:
                if error.fault not in _NOT_YET:
                    raise
                if arrival is None:
                    missing = self._fleet.missing
                    if error.fault is Fault.MODEL_NOT_FOUND and missing:
                        raise _not_now(info.model, missing) from error
                    raise
            await arrival.wait()


def _not_now(model: str, missing: int) -> NodeUnavailable:
    nodes = "a node has" if missing == 1 else f"{missing} nodes have"
    return NodeUnavailable(
        f"No node that is connected serves the model '{model}', and {nodes} not told what is"
        " served there, or not come back since this relay started.",
        retry_after_s=RETRY_AFTER_S,
    )
