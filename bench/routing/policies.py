"""The policies compared. All know which nodes a request fits on, and none is given a node's speed.

The plain ones count what they have in flight on each node, exactly and without delay, and send
each request on at once; the node queues what it has no slot for. Ours is the relay's own
`Scheduler`, fed with what a relay would have: estimated prompt lengths, delayed reports, measured
rates.
"""

from __future__ import annotations

import abc
import hashlib
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from bench.routing.node import Job, Node, NodeSpec
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.policy.prefixes import WarmPrefixes
from wai_relay.policy.scheduler import Placement, Result, Scheduler, Ticket, Tokens
from wai_relay.policy.selection import MIN_ANSWER_TOKENS, Demand

MODEL: Final = "model"
# A relay guesses a prompt's tokens from its bytes: off by up to this much either way.
ESTIMATE_ERROR: Final = 0.2
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

    def failed(self, job: Job, now: float) -> None:
        """Its node failed it at once; `job.failed`: this was the last try. Another node is next, in
        the order of the fleet."""
        self.in_flight[job.node] -= 1
        if not job.failed:
            able = self.fits(job)
            later = [i for i in able if i > job.node] or able
            self.send(job, later[0])

    def status(self, index: int, node: Node, now: float) -> Callable[[float], None]:
        """A node says how it is; the report arrives when the returned function is called."""
        raise NotImplementedError

    def deadline(self) -> float | None:
        """When `tick` is wanted."""
        return None

    def tick(self, now: float) -> None:  # noqa: B027 - most don't care
        """Time passed."""

    def fits(self, job: Job) -> list[int]:
        """The nodes whose context is large enough."""
        need = job.request.prompt_tokens + job.request.output_tokens
        return [i for i, spec in enumerate(self.specs) if spec.context_tokens >= need]

    def send(self, job: Job, index: int) -> None:
        self.in_flight[index] += 1
        self.send_to(job, index)


class Choosing(Policy):
    """One that decides at once."""

    def arrive(self, job: Job, now: float) -> None:
        del now
        self.send(job, self.choose(job, self.fits(job)))

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
    turn = 0

    def choose(self, job: Job, able: list[int]) -> int:
        self.turn += 1
        return able[self.turn % len(able)]


class LeastConnections(Choosing):
    def choose(self, job: Job, able: list[int]) -> int:
        return self.least(able, lambda i: self.in_flight[i])


class PowerOfTwo(Choosing):
    def choose(self, job: Job, able: list[int]) -> int:
        pair = self.rng.sample(able, min(2, len(able)))
        return self.least(pair, lambda i: self.in_flight[i])


class MostFreeSlots(Choosing):
    """By share once none is free: else a large node with a long queue would beat a small one."""

    def choose(self, job: Job, able: list[int]) -> int:
        def rank(i: int) -> float:
            free = self.specs[i].slots - self.in_flight[i]
            return -free if free > 0 else -free / self.specs[i].slots

        return self.least(able, rank)


class PrefixHash(Choosing):
    """A prompt's first blocks always go to the same node (rendezvous hashing by slots)."""

    def choose(self, job: Job, able: list[int]) -> int:
        head = job.request.blocks[:4] or (job.request.at,)

        def weight(i: int) -> float:
            text = f"{self.specs[i].name}/{head}".encode()
            drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
            return float(drawn ** (1 / self.specs[i].slots))

        return max(able, key=weight)


class CacheAware(Choosing):
    """SGLang's router's rule: by longest known prefix, unless the load is far out of balance."""

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.warm = [WarmPrefixes(spec.cache_tokens) for spec in specs]

    def choose(self, job: Job, able: list[int]) -> int:
        request = job.request
        load = [self.in_flight[i] for i in able]
        chosen = self.least(able, lambda i: self.in_flight[i])
        if not (max(load) - min(load) > 64 and max(load) > 1.5 * min(load)):
            tokens = request.prompt_tokens
            matches = {i: self.warm[i].warm_tokens(request.blocks, tokens) for i in able}
            best = max(able, key=lambda i: matches[i])
            if matches[best] > 0.3 * tokens:
                chosen = best
        self.warm[chosen].remember(request.blocks, request.prompt_tokens)
        return chosen


class RelayQueue(Policy):
    """Most free slots, and one queue at the relay for what finds none (first come, first
    served)."""

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.queue: deque[Job] = deque()

    def arrive(self, job: Job, now: float) -> None:
        self.queue.append(job)
        self._drain()

    def done(self, job: Job, now: float) -> None:
        super().done(job, now)
        self._drain()

    def _drain(self) -> None:
        left: deque[Job] = deque()
        free = [spec.slots - used for spec, used in zip(self.specs, self.in_flight, strict=True)]
        while self.queue and max(free) > 0:
            job = self.queue.popleft()
            index = max(self.fits(job), key=lambda i: free[i])
            if free[index] > 0:
                free[index] -= 1
                self.send(job, index)
            else:
                left.append(job)
        self.queue.extendleft(reversed(left))


class Ours(Policy):
    """The relay's scheduler."""

    wants_status = True

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.scheduler = Scheduler(queue_limit=1_000_000)
        self.index = {spec.name: i for i, spec in enumerate(specs)}
        self.placed: dict[int, Placement] = {}
        self.suspects: dict[int, list[Placement]] = {}  # those that failed a job
        for index, spec in enumerate(specs):
            self.status(index, Node(spec), 0.0)(0.0)

    def arrive(self, job: Job, now: float) -> None:
        self._submit(job, now, frozenset())

    def _submit(self, job: Job, now: float, avoid: frozenset[str]) -> None:
        request = job.request
        # Fit is decided by the truth for every policy: a misfit would be an error, not a wait. So
        # the guess never says that a prompt is too long for a node where it fits.
        able = [self.specs[i] for i in self.fits(job)]
        longest = min(spec.context_tokens for spec in able) - MIN_ANSWER_TOKENS
        guess = self.rng.uniform(1 - ESTIMATE_ERROR, 1 + ESTIMATE_ERROR) * request.prompt_tokens
        demand = Demand(
            MODEL,
            max(1, min(round(guess), longest)),
            prefix=request.blocks,
            nodes=frozenset(spec.name for spec in able),
            avoid=avoid,
            generates=request.output_tokens > 0,
        )
        ticket = self.scheduler.submit(demand, request.key, now, max_wait_s=1e9)
        if ticket.placement is not None:
            self._go(job, ticket)
        else:
            ticket.on_change = lambda: self._go(job, ticket)

    def _go(self, job: Job, ticket: Ticket) -> None:
        assert ticket.placement is not None
        self.placed[id(job)] = ticket.placement
        self.send(job, self.index[ticket.placement.node])

    def first(self, job: Job, now: float) -> None:
        if job.request.output_tokens:
            self.scheduler.first_token(self.placed[id(job)], now)
            self._served(job, now)

    def done(self, job: Job, now: float) -> None:
        super().done(job, now)
        self._served(job, now)
        tokens = Tokens(job.request.prompt_tokens, job.cached, job.request.output_tokens)
        self.scheduler.finish(self.placed.pop(id(job)), now, Result.SERVED, tokens)

    def failed(self, job: Job, now: float) -> None:
        self.in_flight[job.node] -= 1
        placement = self.placed.pop(id(job))
        self.scheduler.finish(placement, now, Result.SUSPECT)
        tried = self.suspects.setdefault(id(job), [])
        tried.append(placement)
        if not job.failed:
            self._submit(job, now, frozenset(one.node for one in tried))

    def _served(self, job: Job, now: float) -> None:
        for placement in self.suspects.pop(id(job), ()):
            self.scheduler.blame(placement, now)

    def status(self, index: int, node: Node, now: float) -> Callable[[float], None]:
        spec = node.spec
        model = ModelStatus(
            MODEL,
            "upstream",
            context_tokens=spec.context_tokens,
            slots_total=spec.slots if spec.tells else None,
            slots_busy=node.busy if spec.tells else node.busy + len(node.waiting),
            queued=len(node.waiting) if spec.tells else 0,
            prefill_tps=node.prefill_tps,
            decode_tps=node.decode_tps,
        )
        report = NodeStatus((model,))
        return lambda at: self.scheduler.update(spec.name, report, at, rtt_s=spec.rtt_s)

    def deadline(self) -> float | None:
        return self.scheduler.next_deadline()

    def tick(self, now: float) -> None:
        self.scheduler.handle_timeout(now)
