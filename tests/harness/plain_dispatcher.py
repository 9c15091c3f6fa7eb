"""A dispatcher with a simple rule: the most free slots, and the last name among equals.

The gateway's tests choose by a node's name which is tried first. It never waits or learns.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError
from wai_protocol.status import ModelStatus
from wai_relay.contracts.upstream import Fleet, ServingNode
from wai_relay.gateway.dispatch import Lease, Outcome, RequestInfo

ASSUMED_SLOTS: Final = 4
RETRY_AFTER_S: Final = 5.0


class LeastBusyDispatcher:
    """Takes the ready node with the most free slots; what waits, waits in the upstream's queue.
    `blamed`, `acquitted` and `refused` name the nodes that failed what another served, or what
    nobody did, and that found fault with a request."""

    def __init__(self, fleet: Fleet) -> None:
        self.blamed: list[str] = []
        self.acquitted: list[str] = []
        self.refused: list[str] = []
        self._fleet = fleet
        self._claims: Counter[str] = Counter()

    async def acquire(self, info: RequestInfo) -> Lease:
        """See `Dispatcher`."""
        offers = self._offers(info)
        if not offers:
            raise self._nobody(info)
        node = max(offers, key=lambda name: (offers[name][1], name))
        self._claims[node] += 1
        return _CountedLease(self, self._claims, offers[node][0], info)

    def _offers(self, info: RequestInfo) -> dict[str, tuple[ServingNode, int]]:
        """The nodes that can take it now, with their free slots."""
        offers: dict[str, tuple[ServingNode, int]] = {}
        for node in self._fleet.nodes():
            model = _model_of(node, info)
            if model is None or not (node.ready and model.ready) or not _allowed(node, info):
                continue
            total = ASSUMED_SLOTS if model.slots_total is None else model.slots_total
            free = total - max(model.slots_busy, self._claims[node.name])
            offers[node.name] = (node, free)
        return offers

    def _nobody(self, info: RequestInfo) -> WaiError:
        """Why no node takes it: for now, or for good."""
        nodes = list(self._fleet.nodes())
        if info.pin is not None and all(node.name != info.pin for node in nodes):
            return RequestError(f"There is no node `{info.pin}`.", Fault.NODE_NOT_FOUND)
        if info.pin is not None:
            nodes = [node for node in nodes if node.name == info.pin]
        if all(_model_of(node, info) is None for node in nodes):
            where = f"Node `{info.pin}`" if info.pin is not None else "No node"
            verb = "does not serve" if info.pin is not None else "serves"
            message = (
                f"{where} {verb} the model `{info.model}`; GET /v1/models lists what is served."
            )
            return RequestError(message, Fault.MODEL_NOT_FOUND)
        tried = all(
            node.name in info.excluded for node in nodes if _model_of(node, info) is not None
        )
        return NodeUnavailable(
            f"No node can serve `{info.model}` at the moment; try again soon.",
            retry_after_s=None if tried else RETRY_AFTER_S,
        )


class _CountedLease(Lease):
    def __init__(
        self,
        dispatcher: LeastBusyDispatcher,
        claims: Counter[str],
        node: ServingNode,
        info: RequestInfo,
    ) -> None:
        self._dispatcher = dispatcher
        self._claims = claims
        self.upstream = node
        self.model = info.model
        self.reason = "pinned" if info.pin is not None else "least-busy"

    def blame(self) -> None:
        self._dispatcher.blamed.append(self.upstream.name)

    def acquit(self) -> None:
        self._dispatcher.acquitted.append(self.upstream.name)

    def release(self, outcome: Outcome) -> None:
        if outcome.refused:
            self._dispatcher.refused.append(self.upstream.name)
        self._claims[self.upstream.name] -= 1
        if not self._claims[self.upstream.name]:
            del self._claims[self.upstream.name]


def _model_of(node: ServingNode, info: RequestInfo) -> ModelStatus | None:
    for model in node.status.models:
        if model.id == info.model and model.has_route(info.api, info.route):
            return model
    return None


def _allowed(node: ServingNode, info: RequestInfo) -> bool:
    nodes = info.key.limits.nodes
    return (
        node.name not in info.excluded
        and info.pin in (None, node.name)
        and (not nodes or node.name in nodes)
    )
