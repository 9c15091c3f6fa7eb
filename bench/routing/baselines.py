"""The stronger baselines: what other routers do, with plausible settings, and a lower bound.

No search was made for the best settings of each baseline.
"""

from __future__ import annotations

from typing import Final

from bench.routing.node import Job, NodeSpec
from bench.routing.policies import Choosing, Send
from wai_relay.policy.prefixes import WarmPrefixes

# SGLang's cache-aware rule, with its bounds per slot: a node is out of balance with this many more
# requests per slot than the least loaded one.
OUT_OF_BALANCE: Final = 0.5
LEAST_MATCH: Final = 0.3
# Preble exploits a cached prefix where it is at least half of the prompt.
EXPLOIT_SHARE: Final = 0.5
# The weights of the inference extension's default scorers: queue, cache in use, prefix.
QUEUE_WEIGHT: Final = 2.0
CACHE_WEIGHT: Final = 2.0
PREFIX_WEIGHT: Final = 3.0


class WeightedLeastConnections(Choosing):
    """Requests in flight per slot."""

    def choose(self, job: Job, able: list[int]) -> int:
        return self.least(able, lambda i: (self.in_flight[i] + 1) / self.specs[i].slots)


class Remembering(Choosing):
    """One that remembers which prefixes it sent where, and the tokens in flight there."""

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.warm = [WarmPrefixes(spec.cache_tokens) for spec in specs]
        self.tokens = [0.0] * len(specs)

    def send(self, job: Job, index: int) -> None:
        self.warm[index].remember(job.request.blocks, job.request.prompt_tokens)
        self.tokens[index] += job.request.prompt_tokens
        super().send(job, index)

    def done(self, job: Job, now: float) -> None:
        super().done(job, now)
        self.tokens[job.node] -= job.request.prompt_tokens

    def match(self, job: Job, index: int) -> float:
        """The share of the prompt that is cached there."""
        request = job.request
        warm = self.warm[index].warm_tokens(request.blocks, request.prompt_tokens)
        return warm / request.prompt_tokens

    def per_slot(self, index: int) -> float:
        return (self.in_flight[index] + 1) / self.specs[index].slots


class CacheAwarePerSlot(Remembering):
    """By the longest known prefix, unless the load per slot is out of balance."""

    def choose(self, job: Job, able: list[int]) -> int:
        chosen = self.least(able, self.per_slot)
        best = max(able, key=lambda i: self.match(job, i))
        balanced = self.per_slot(best) - self.per_slot(chosen) <= OUT_OF_BALANCE
        return best if balanced and self.match(job, best) > LEAST_MATCH else chosen


class Preble(Remembering):
    """Exploits a long cached prefix, else explores by the tokens in flight per slot."""

    def choose(self, job: Job, able: list[int]) -> int:
        def cost(index: int) -> float:
            fresh = job.request.prompt_tokens * (1 - self.match(job, index))
            return (self.tokens[index] + fresh) / self.specs[index].slots

        longest = max(self.match(job, i) for i in able)
        if longest > EXPLOIT_SHARE:
            return self.least([i for i in able if self.match(job, i) == longest], cost)
        return self.least(able, cost)


class InferenceExtension(Remembering):
    """The Gateway API inference extension's endpoint picker: a weighted sum of scores."""

    def choose(self, job: Job, able: list[int]) -> int:
        queued = {i: max(0, self.in_flight[i] - self.specs[i].slots) for i in able}
        most, least = max(queued.values()), min(queued.values())

        def score(index: int) -> float:
            queue = (most - queued[index]) / (most - least) if most > least else 1.0
            used = min(1.0, self.tokens[index] / self.specs[index].cache_tokens)
            return (
                QUEUE_WEIGHT * queue
                + CACHE_WEIGHT * (1 - used)
                + PREFIX_WEIGHT * self.match(job, index)
            )

        return self.least(able, lambda i: -score(i))
