"""What a request asks of a node, and which nodes could take it at all. Pure."""

from __future__ import annotations

import enum
import math
from typing import Final, NamedTuple

from wai_protocol.status import ModelStatus

from .fingerprints import Fingerprint

# A prompt must leave room for some answer, or the upstream takes the slot only to stop at once.
MIN_ANSWER_TOKENS: Final = 16
# How long a request may wait for a slot of ours, where a provider could take it at once. Money and
# privacy are worth more than seconds; callers' patience, and the limits of proxies, are not longer.
OVERFLOW_AFTER_S: Final = 10.0


class Readiness(enum.Enum):
    """Whether a node can be given work."""

    READY = "ready"
    DRAINING = "draining"  # it is about to stop, or an admin drained it
    COOLING = "cooling"  # failed lately; taken only where nobody else can serve
    AWAY = "away"  # not connected now


class Demand(NamedTuple):
    """What one request asks of a node.

    `prompt_tokens` is an estimate and `certain_tokens` a number that the prompt surely has (None:
    the estimate is no estimate); `max_output_tokens` is the caller's own limit (None: none given),
    `expected_output_tokens` what such requests used to get; `generates`: it gets any.
    `asked_context`: the context that the caller wants, 0 for any. `nodes`: the names that the key
    may use (None: all). `avoid`: nodes that were tried for it already. `pin`: the one node that the
    caller insists on. `api`: the dialect it speaks; `route`: the path of its route.
    `overflow_after_s`: how long it may wait for a slot of our own where a provider could serve it.
    `streams`: the answer's beginning is seen.
    """

    model: str
    prompt_tokens: int
    max_output_tokens: int | None = None
    expected_output_tokens: float = 256.0
    prefix: Fingerprint = ()
    pin: str | None = None
    nodes: frozenset[str] | None = None
    avoid: frozenset[str] = frozenset()
    local_only: bool = False
    api: str = "openai"
    overflow_after_s: float = OVERFLOW_AFTER_S
    generates: bool = True
    streams: bool = False
    route: str = ""
    certain_tokens: int | None = None
    asked_context: int = 0
    hopeful: bool = False
    """Whether it may go where only the estimate says that it is too long."""

    def expecting(self, output_tokens: float) -> Demand:
        """The same with another `expected_output_tokens`; `_replace` takes four times as long."""
        return tuple.__new__(Demand, (*self[:3], output_tokens, *self[4:]))

    @property
    def least_context(self) -> int:
        """The context below which it is likely not to be served at all, in tokens."""
        if self.hopeful:
            return self.certain_context
        if not self.generates:  # each of a batch of texts has a context of its own
            return 0
        return self.prompt_tokens + self._least_answer

    @property
    def certain_context(self) -> int:
        """The context below which it surely can't be served, in tokens."""
        if not self.generates:
            return 0
        certain = self.prompt_tokens if self.certain_tokens is None else self.certain_tokens
        return min(certain, self.prompt_tokens) + self._least_answer

    @property
    def _least_answer(self) -> int:
        limit = self.max_output_tokens
        return MIN_ANSWER_TOKENS if limit is None else min(limit, MIN_ANSWER_TOKENS)

    @property
    def full_context(self) -> int:
        """The context with which the answer is not cut short, in tokens."""
        if not self.generates:
            return 0
        limit = self.max_output_tokens
        answer = math.ceil(self.expected_output_tokens) if limit is None else limit
        return max(self.prompt_tokens + answer, self.asked_context)


def most_context(model: ModelStatus) -> int | None:
    """The context that the model can have: what an Ollama has loaded it with is no bound."""
    return model.largest_context_tokens or model.context_tokens


def serves(demand: Demand, model: ModelStatus, node: str) -> bool:
    """Whether `node` could take `demand` if it had a free slot and were well. Cheap."""
    context = most_context(model)
    return (
        (demand.pin is None or demand.pin == node)
        and (demand.nodes is None or node in demand.nodes)
        and node not in demand.avoid
        and (context is None or context >= demand.certain_context)
        and model.has_route(demand.api, demand.route)
        and model.ready
    )
