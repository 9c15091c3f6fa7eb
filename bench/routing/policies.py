"""What all policies have in common, and the plain ones.

All know which nodes a request fits on. The plain ones count what they have in flight on each node,
exactly and without delay, and send each request on at once; the node queues what it has no slot
for. A node that failed a request rests, as behind nginx (`max_fails=1`), and the request is tried
elsewhere. Their constants are attributes of their classes, chosen by `tuning`.
"""

from __future__ import annotations

import abc
import hashlib
import random
from collections import deque
from collections.abc import Callable

from bench.routing.node import Job, Node, NodeSpec, fits
from wai_relay.policy.prefixes import WarmPrefixes

Send = Callable[[Job, int], None]


class Policy(abc.ABC):
    """Sends every job that arrives to a node, now or later."""

    wants_status = False

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        self.specs = specs
        self.send_to = send
        self.rng = random.Random(seed)
        self.in_flight = [0] * len(specs)

    @abc.abstractmethod
    def arrive(self, job: Job, now: float) -> None:
        """A request came in."""

    def first(self, job: Job, now: float) -> None:  # noqa: B027 - most don't care
        """Its first token came back."""

    def done(self, job: Job, now: float) -> None:
        """It is over."""
        self.in_flight[job.node] -= 1

    @abc.abstractmethod
    def failed(self, job: Job, now: float) -> None:
        """Its node failed it; `job.failed`: this was the last try."""

    def status(self, index: int, node: Node, now: float) -> Callable[[float], None]:
        """A node says how it is; the report arrives when the returned function is called."""
        raise NotImplementedError

    def deadline(self) -> float | None:
        """When `tick` is wanted."""
        return None

    def tick(self, now: float) -> None:  # noqa: B027 - most don't care
        """Time passed."""

    def able(self, job: Job) -> list[int]:
        """The nodes that may serve it at all: with a context that is large enough, or the one that
        it is bound to."""
        if job.bound is not None:
            return [job.bound]
        return [i for i, spec in enumerate(self.specs) if fits(spec, job.request)]

    def send(self, job: Job, index: int) -> None:
        self.in_flight[index] += 1
        self.send_to(job, index)


class Resting(Policy):
    """One whose nodes rest for `rest_s` after each failure.

    This and all constants of the policies here were found by the search of `tuning`
    (bench/results/routing-tuning.md)."""

    rest_s: float = 0.0  # nginx: 10

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.rests_until = [0.0] * len(specs)

    def failed(self, job: Job, now: float) -> None:
        self.in_flight[job.node] -= 1
        self.rests_until[job.node] = now + self.rest_s
        if not job.failed:
            self.arrive(job, now)

    def well(self, job: Job, now: float) -> list[int]:
        """The able nodes that neither failed it nor rest; else those that did not fail it; else
        all."""
        able = self.able(job)
        if job.tried:
            able = [i for i in able if i not in job.tried] or able
        return [i for i in able if self.rests_until[i] <= now] or able


class Choosing(Resting):
    """One that decides at once."""

    def arrive(self, job: Job, now: float) -> None:
        self.send(job, self.choose(job, self.well(job, now)))

    @abc.abstractmethod
    def choose(self, job: Job, able: list[int]) -> int:
        """One of `able`."""

    def least(self, able: list[int], key: Callable[[int], float]) -> int:
        """The one with the lowest `key`, any of them if several have."""
        low = min(key(i) for i in able)
        return self.rng.choice([i for i in able if key(i) == low])


class Random(Choosing):
    def choose(self, job: Job, able: list[int]) -> int:
        return self.rng.choice(able)


class RoundRobin(Choosing):
    rest_s = 1.0
    turn = 0

    def choose(self, job: Job, able: list[int]) -> int:
        self.turn += 1
        return able[self.turn % len(able)]


class LeastConnections(Choosing):
    def choose(self, job: Job, able: list[int]) -> int:
        return self.least(able, lambda i: self.in_flight[i])


class PowerOfChoices(Choosing):
    """The least busy of `drawn` nodes."""

    drawn: int = 6  # authors: 2

    def choose(self, job: Job, able: list[int]) -> int:
        some = self.rng.sample(able, min(self.drawn, len(able)))
        return self.least(some, lambda i: self.in_flight[i])


class MostFreeSlots(Choosing):
    """By share once none is free: else a large node with a long queue would beat a small one."""

    def choose(self, job: Job, able: list[int]) -> int:
        def rank(i: int) -> float:
            free = self.specs[i].slots - self.in_flight[i]
            return -free if free > 0 else -free / self.specs[i].slots

        return self.least(able, rank)


class PrefixHash(Choosing):
    """A prompt's first `head` blocks always go to the same node (rendezvous hashing by slots),
    unless that has more than `bound` times its share of what is in flight: then to the next."""

    head: int = 1
    bound: float = 1.1  # authors: 1.25

    def choose(self, job: Job, able: list[int]) -> int:
        head = job.request.blocks[: self.head] or (job.request.at,)

        def weight(i: int) -> float:
            text = f"{self.specs[i].name}/{head}".encode()
            drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
            return float(drawn ** (1 / self.specs[i].slots))

        slots = sum(self.specs[i].slots for i in able)
        most = self.bound * (sum(self.in_flight[i] for i in able) + 1) / slots
        ranked = sorted(able, key=weight, reverse=True)
        within = (i for i in ranked if self.in_flight[i] < most * self.specs[i].slots)
        return next(within, ranked[0])


class CacheAware(Choosing):
    """SGLang's router's rule: by longest known prefix, if it is more than the share `match` of the
    prompt, unless the load is out of balance, by more than `apart` requests and `times` the least
    busy node's."""

    match: float = 0.5  # authors: 0.3
    apart: int = 4  # authors: 64
    times: float = 2.0  # authors: 1.5

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.warm = [WarmPrefixes(spec.cache_tokens) for spec in specs]

    def choose(self, job: Job, able: list[int]) -> int:
        request = job.request
        load = [self.in_flight[i] for i in able]
        chosen = self.least(able, lambda i: self.in_flight[i])
        if not (max(load) - min(load) > self.apart and max(load) > self.times * min(load)):
            tokens = request.prompt_tokens
            matches = {i: self.warm[i].warm_tokens(request.blocks, tokens) for i in able}
            best = max(able, key=lambda i: matches[i])
            if matches[best] > self.match * tokens:
                chosen = best
        self.warm[chosen].remember(request.blocks, request.prompt_tokens)
        return chosen


class RelayQueue(Resting):
    """Most free slots, and one queue at the relay for what finds none (first come, first
    served)."""

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.queue: deque[Job] = deque()

    def arrive(self, job: Job, now: float) -> None:
        if job.tried:  # it was the first in line when it was tried
            self.queue.appendleft(job)
        else:
            self.queue.append(job)
        self._drain(now)

    def done(self, job: Job, now: float) -> None:
        super().done(job, now)
        self._drain(now)

    def _drain(self, now: float) -> None:
        left: deque[Job] = deque()
        free = [spec.slots - used for spec, used in zip(self.specs, self.in_flight, strict=True)]
        while self.queue and max(free) > 0:
            job = self.queue.popleft()
            index = max(self.well(job, now), key=lambda i: free[i])
            if free[index] > 0:
                free[index] -= 1
                self.send(job, index)
            else:
                left.append(job)
        self.queue.extendleft(reversed(left))
