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
    DRAINING = "draining"
    COOLING = "cooling"  # failed lately; taken only where nobody else can serve
    AWAY = "away"  # not connected now, or kept out of service by its owner


class Demand(NamedTuple):
    """What one request asks of a node.

    `prompt_tokens` is an estimate, `max_output_tokens` the caller's own limit (None: none given)
    and `expected_output_tokens` what such requests used to get; `generates`: it gets any. `nodes`:
    the names that the key may use (None: all). `avoid`: nodes that were tried for it already.
    `pin`: the one node that the caller insists on. `api`: the dialect it speaks.
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

    @property
    def least_context(self) -> int:
        """The context below which it can't be served at all, in tokens."""
        limit = self.max_output_tokens
        if not self.generates:  # each of a batch of texts has a context of its own
            return 0
        answer = MIN_ANSWER_TOKENS if limit is None else min(limit, MIN_ANSWER_TOKENS)
        return self.prompt_tokens + answer

    @property
    def full_context(self) -> int:
        """The context with which the answer is not cut short, in tokens."""
        if not self.generates:
            return 0
        limit = self.max_output_tokens
        return self.prompt_tokens + (
            math.ceil(self.expected_output_tokens) if limit is None else limit
        )


def serves(demand: Demand, model: ModelStatus, node: str) -> bool:
    """Whether `node` could take `demand` if it had a free slot and were well. Cheap."""
    context = model.context_tokens
    return (
        (demand.pin is None or demand.pin == node)
        and (demand.nodes is None or node in demand.nodes)
        and node not in demand.avoid
        and (context is None or context >= demand.least_context)
        and demand.api in model.apis
        and model.ready
    )
