"""Who gets a request: what the gateway asks of whatever chooses, and the plainest chooser.

The gateway asks for a lease, uses its upstream, and gives it back with what happened. How long
`acquire` waits, and by which rules, is the dispatcher's business.
"""

from __future__ import annotations

import abc
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Protocol

from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError
from wai_protocol.status import ModelStatus

from .fingerprints import Fingerprint
from .keys import ApiKey
from .records import TokenCounts
from .upstream import Fleet, ServingNode, Upstream

ASSUMED_SLOTS: Final = 4  # of an upstream that does not tell: llama-server's own default
RETRY_AFTER_S: Final = 5.0  # a node that lost its connection is back by then, or stays away


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What a choice may depend on. `prompt_tokens` is an estimate; `pin` the node that the caller
    insists on; `excluded` the upstreams that have failed this very request."""

    request_id: str
    key: ApiKey
    model: str
    api: str = "openai"
    generates: bool = True
    stream: bool = False
    prompt_tokens: int = 0
    max_output_tokens: int | None = None
    prefix: Fingerprint = ()
    pin: str | None = None
    excluded: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a lease was used. `fault` is None unless the upstream failed; a caller's own mistake or
    its going away is no failure. Times in seconds, from when the upstream was given the request."""

    fault: Fault | None
    cancelled: bool
    ttft_s: float | None
    duration_s: float
    tokens: TokenCounts


class Lease(abc.ABC):
    """A claim on one upstream for one request. `model` is what to ask it for; `fallback` says that
    this is not what the caller asked for, or not one of our own nodes."""

    upstream: Upstream
    model: str
    reason: str
    queue_ms: float = 0.0
    candidates: tuple[object, ...] = ()
    fallback: bool = False

    def answering(self) -> None:  # noqa: B027 - of use to those who count prefills only
        """The answer's first byte has come: the prompt was read."""

    @abc.abstractmethod
    def release(self, outcome: Outcome) -> None:
        """Give the claim back. Called exactly once, whatever happens."""


class Dispatcher(Protocol):
    """Chooses an upstream for a request, and may make it wait for one."""

    async def acquire(self, info: RequestInfo) -> Lease:
        """A claim that is already counted. Raises `RequestError` (404, 400, 403, 429) for what will
        not work later either, `NodeUnavailable` (503) for what may. Cancelled: no claim."""


class LeastBusyDispatcher:
    """Takes the ready node with the most free slots; what waits, waits in the upstream's queue."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._claims: Counter[str] = Counter()

    async def acquire(self, info: RequestInfo) -> Lease:
        """See `Dispatcher`."""
        offers = self._offers(info)
        if not offers:
            raise self._nobody(info)
        node = max(offers, key=lambda name: (offers[name][1], name))
        self._claims[node] += 1
        return _CountedLease(self._claims, offers[node][0], info)

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
        return NodeUnavailable(
            f"No node can serve `{info.model}` at the moment; try again soon.",
            retry_after_s=RETRY_AFTER_S,
        )


class _CountedLease(Lease):
    def __init__(self, claims: Counter[str], node: ServingNode, info: RequestInfo) -> None:
        self._claims = claims
        self.upstream = node
        self.model = info.model
        self.reason = "pinned" if info.pin is not None else "least-busy"

    def release(self, outcome: Outcome) -> None:
        del outcome  # nothing is learnt here
        self._claims[self.upstream.name] -= 1
        if not self._claims[self.upstream.name]:
            del self._claims[self.upstream.name]


def _model_of(node: ServingNode, info: RequestInfo) -> ModelStatus | None:
    for model in node.status.models:
        if model.id == info.model and info.api in model.apis:
            return model
    return None


def _allowed(node: ServingNode, info: RequestInfo) -> bool:
    nodes = info.key.limits.nodes
    return (
        node.name not in info.excluded
        and info.pin in (None, node.name)
        and (not nodes or node.name in nodes)
    )
