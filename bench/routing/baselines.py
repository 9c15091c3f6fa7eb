"""The stronger baselines: what other routers do.

Their constants are attributes, found by the search of `tuning` (bench/results/routing-tuning.md).
"""

from __future__ import annotations

from bench.routing.node import Job, NodeSpec
from bench.routing.policies import Choosing, Send
from wai_relay.policy.prefixes import WarmPrefixes


class WeightedLeastConnections(Choosing):
    """Requests in flight by a node's weight, which its operator sets: its slots, times its speed
    with all of them in use to the power of `speed` (so with 0 no speed is known)."""

    speed: float = 1.0

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        full = [spec.decode_tps / (1 + spec.crowd * (spec.slots - 1)) for spec in specs]
        self.weights = [spec.slots * tps**self.speed for spec, tps in zip(specs, full, strict=True)]

    def choose(self, job: Job, able: list[int]) -> int:
        return self.least(able, lambda i: (self.in_flight[i] + 1) / self.weights[i])


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
    """SGLang's rule by slots: the longest known prefix, if it is more than the share `least_match`
    of the prompt, unless its node has more than `apart` more requests per slot than the least busy
    one."""

    least_match: float = 0.1  # authors: 0.3
    apart: float = 0.5

    def choose(self, job: Job, able: list[int]) -> int:
        chosen = self.least(able, self.per_slot)
        best = max(able, key=lambda i: self.match(job, i))
        balanced = self.per_slot(best) - self.per_slot(chosen) <= self.apart
        return best if balanced and self.match(job, best) > self.least_match else chosen


class Preble(Remembering):
    """Exploits a cached prefix where it is more than the share `exploit` of the prompt, else
    explores by the tokens in flight per slot. One that holds more than `apart` times as many
    tokens per slot as the least busy node is not exploited further."""

    rest_s = 1.0
    exploit: float = 0.3  # authors: 0.5
    apart: float = 4.0

    def choose(self, job: Job, able: list[int]) -> int:
        def cost(index: int) -> float:
            fresh = job.request.prompt_tokens * (1 - self.match(job, index))
            return (self.tokens[index] + fresh) / self.specs[index].slots

        longest = max(self.match(job, i) for i in able)
        chosen = self.least(able, cost)
        if longest > self.exploit:
            best = self.least([i for i in able if self.match(job, i) == longest], cost)
            if cost(best) <= self.apart * cost(chosen):
                return best
        return chosen


class InferenceExtension(Remembering):
    """The Gateway API inference extension's endpoint picker: a sum of scores for a short queue, for
    free cache and for a known prefix, each by its weight."""

    rest_s = 1.0
    queue: float = 2.0
    cache: float = 2.0
    prefix: float = 1.0  # authors: 3

    def choose(self, job: Job, able: list[int]) -> int:
        queued = {i: max(0, self.in_flight[i] - self.specs[i].slots) for i in able}
        most, least = max(queued.values()), min(queued.values())

        def score(index: int) -> float:
            queue = (most - queued[index]) / (most - least) if most > least else 1.0
            used = min(1.0, self.tokens[index] / self.specs[index].cache_tokens)
            return (
                self.queue * queue + self.cache * (1 - used) + self.prefix * self.match(job, index)
            )

        return self.least(able, lambda i: -score(i))
