"""One run: a trace, a fleet, a policy. Events in order of time, no clock."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

from bench.routing.node import Job, Node, NodeSpec, fits
from bench.routing.policies import Policy, Send
from bench.routing.traces import TraceRequest

# A report's way to the relay: the node looks at its upstream about so often, and the network.
STATUS_DELAY_S: Final = 0.15
STATUS_EVERY_S: Final = 0.25
# The first of the requests find empty nodes and a policy that knows nothing: they run, uncounted.
WARM_UP: Final = 0.1
ATTEMPTS: Final = 3  # as many as the gateway makes
# Good enough for a caller: two seconds, and one more for each thousand tokens of prompt.
GOOD_S: Final = 2.0
GOOD_S_PER_TOKEN: Final = 0.001


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the callers saw. Times in seconds: to the first token, to the answer's end
    (`end_mean_s`), and for each further token (`token_p50_s`, the median of requests); `goodput` in
    requests a second that were good enough; `failed`: the share whose caller got an error."""

    p50_s: float
    p99_s: float
    mean_s: float
    end_mean_s: float
    token_p50_s: float
    goodput: float
    hit_rate: float
    failed: float


def median(outcomes: Sequence[Outcome]) -> Outcome:
    """Of each figure its median over several runs."""
    return Outcome(
        *(statistics.median(getattr(o, field.name) for o in outcomes) for field in fields(Outcome))
    )


class Simulation:
    """Runs one policy once."""

    def __init__(
        self,
        specs: list[NodeSpec],
        make_policy: Callable[[list[NodeSpec], Send, int], Policy],
        seed: int,
    ) -> None:
        self.nodes = [Node(spec) for spec in specs]
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.reported = [False] * len(specs)
        self.policy = make_policy(specs, self._send, seed)
        self.tick_at: float | None = None
        self.bound_to: dict[int, int] = {}  # conversation -> the node that served it last
        # Of conversations with a turn under way: those that come after it.
        self.next_turns: dict[int, deque[Job]] = {}

    def run(self, trace: list[TraceRequest]) -> Outcome:
        """Replay `trace` to its end."""
        jobs = [Job(request) for request in trace]
        for job in jobs:
            self._at(job.request.at, partial(self._arrive, job))
        while self.events:
            self.now, _, action = heapq.heappop(self.events)
            action()
            self._arm_tick()
        return _outcome(jobs[int(len(jobs) * WARM_UP) :])

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.serial), action))

    def _arrive(self, job: Job) -> None:
        """A caller's request. One of a conversation waits for the turn before it to be over."""
        conversation = job.request.conversation
        if conversation is not None:
            if conversation in self.next_turns:
                self.next_turns[conversation].append(job)
                return
            self.next_turns[conversation] = deque()
            bound = self.bound_to.get(conversation)
            if bound is not None and fits(self.nodes[bound].spec, job.request):
                job.bound = bound
        job.arrived = self.now
        self.policy.arrive(job, self.now)

    def _over(self, job: Job) -> None:
        conversation = job.request.conversation
        if conversation is None:
            return
        if not job.failed:
            self.bound_to[conversation] = job.node
        turns = self.next_turns.pop(conversation)
        if turns:
            self._arrive(turns.popleft())
            self.next_turns[conversation] = turns

    def _send(self, job: Job, index: int) -> None:
        job.sent, job.node = self.now, index
        node = self.nodes[index]
        job.silence_s = node.spec.faults.silence(self.now, self.rng)
        if job.silence_s == 0.0:
            self._at(self.now + node.spec.rtt_s, partial(self._failed, job))
            return

        def deliver() -> None:
            node.advance(self.now)
            node.add(job, self.now)
            self._watch(index)

        self._at(self.now + node.spec.rtt_s / 2, deliver)

    def _failed(self, job: Job) -> None:
        job.tried += (job.node,)
        job.failed = len(job.tried) >= ATTEMPTS
        self.policy.failed(job, self.now)
        if job.failed:
            self._over(job)

    def _done(self, job: Job) -> None:
        self.policy.done(job, self.now)
        self._over(job)

    def _watch(self, index: int) -> None:
        """Wake when something happens on the node next; a wake-up for an older state does
        nothing."""
        node = self.nodes[index]
        node.version += 1
        version = node.version
        when = node.next_event()
        if when is not None:
            self._at(when, lambda: self._wake(index, version))
        if self.policy.wants_status and not self.reported[index]:
            self.reported[index] = True
            self._at(self.now + STATUS_EVERY_S, lambda: self._report(index))

    def _wake(self, index: int, version: int) -> None:
        node = self.nodes[index]
        if node.version != version:
            return
        node.advance(self.now)
        happened = node.settle(self.now)
        told = self.now + node.spec.rtt_s / 2
        for job in happened.began:
            self._at(told, partial(self._began, job))
        for job in happened.ended:
            self._at(told, partial(self._done, job))
        for job in happened.failed:
            self._at(told, partial(self._failed, job))
        self._watch(index)

    def _began(self, job: Job) -> None:
        self.policy.first(job, self.now)

    def _report(self, index: int) -> None:
        self.reported[index] = False
        node = self.nodes[index]
        node.advance(self.now)
        arrive = self.policy.status(index, node, self.now)
        self._at(self.now + STATUS_DELAY_S, lambda: arrive(self.now))

    def _arm_tick(self) -> None:
        wanted = self.policy.deadline()
        if wanted is not None and (self.tick_at is None or self.tick_at > wanted):
            self.tick_at = wanted
            self._at(wanted, self._tick)

    def _tick(self) -> None:
        self.tick_at = None
        self.policy.tick(self.now)


def lower_bound(specs: list[NodeSpec], trace: list[TraceRequest]) -> Outcome:
    """What no policy can beat: each request finds the node that is quickest for it idle, with all
    blocks cached there that any request before it had."""
    seen: set[int] = set()
    jobs = []
    for request in trace:
        job = Job(request, arrived=request.at)
        known = sum(1 for _ in itertools.takewhile(seen.__contains__, request.blocks))
        job.cached = request.prompt_tokens * known // len(request.blocks) if known else 0
        fresh = max(request.prompt_tokens - job.cached, 1)
        able = [spec for spec in specs if fits(spec, request)]
        job.first = request.at + min(s.rtt_s / 2 + fresh / s.prefill_tps for s in able)
        alone_s = 1 / max(spec.decode_tps for spec in able)
        job.done = job.first + max(request.output_tokens - 1, 0) * alone_s
        seen.update(request.blocks)
        jobs.append(job)
    return _outcome(jobs[int(len(jobs) * WARM_UP) :])


def _outcome(jobs: list[Job]) -> Outcome:
    served = [job for job in jobs if not job.failed]
    waits = sorted(job.first - job.arrived for job in served)
    good = sum(
        job.first - job.arrived <= GOOD_S + GOOD_S_PER_TOKEN * job.request.prompt_tokens
        for job in served
    )
    span = max(job.done for job in served) - jobs[0].arrived
    prompts = sum(job.request.prompt_tokens for job in served)
    paces = [
        (job.done - job.first) / (job.request.output_tokens - 1)
        for job in served
        if job.request.output_tokens > 1
    ]
    return Outcome(
        p50_s=waits[len(waits) // 2],
        p99_s=waits[int(len(waits) * 0.99)],
        mean_s=sum(waits) / len(waits),
        end_mean_s=sum(job.done - job.arrived for job in served) / len(served),
        token_p50_s=statistics.median(paces) if paces else 0.0,
        goodput=good / span,
        hit_rate=sum(job.cached for job in served) / prompts,
        failed=1 - len(served) / len(jobs),
    )
