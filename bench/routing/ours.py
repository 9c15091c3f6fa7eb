"""wai as a policy: the relay's own `Scheduler`, asked as the gateway asks it.

It is fed with what a relay would have: estimated prompt lengths, delayed reports, measured rates,
failures when they are told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bench.routing.node import Job, Node, NodeSpec
from bench.routing.policies import Policy, Send
from wai_api.limits import KeyLimits
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.gateway.dispatch import RequestInfo, demand
from wai_relay.policy.demands import MIN_ANSWER_TOKENS, OVERFLOW_AFTER_S
from wai_relay.policy.scheduler import PASS_S, Placement, Result, Scheduler, Ticket, Tokens
from wai_relay.policy.scoring import FIRST_TOKEN_WEIGHT

MODEL: Final = "model"
# A relay guesses a prompt's tokens from its bytes: off by up to this much either way.
ESTIMATE_ERROR: Final = 0.2


class Ours(Policy):
    """The relay's scheduler, with its settings."""

    first_token_weight: float = FIRST_TOKEN_WEIGHT
    pass_s: float = PASS_S
    wants_status = True

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.scheduler = Scheduler(
            queue_limit=1_000_000,
            first_token_weight=self.first_token_weight,
            pass_s=self.pass_s,
        )
        self.index = {spec.name: i for i, spec in enumerate(specs)}
        self.keys: dict[tuple[str, frozenset[str]], ApiKey] = {}
        self.placed: dict[int, Placement] = {}
        self.suspects: dict[int, list[Placement]] = {}  # those that failed a job
        for index, spec in enumerate(specs):
            self.status(index, Node(spec), 0.0)(0.0)

    def arrive(self, job: Job, now: float) -> None:
        """Ask as the gateway does. A node that failed it is not asked again, but where the caller
        insists on it: then this is the caller's own next try."""
        request = job.request
        # Fit is decided by the truth for every policy: a misfit would be an error, not a wait. So
        # the guess never says that a prompt is too long for a node where it fits.
        able = [self.specs[i] for i in self.able(job)]
        longest = min(spec.context_tokens for spec in able) - MIN_ANSWER_TOKENS
        guess = self.rng.uniform(1 - ESTIMATE_ERROR, 1 + ESTIMATE_ERROR) * request.prompt_tokens
        pinned = job.bound is not None
        info = RequestInfo(
            "",
            self._key(request.key, frozenset() if pinned else frozenset(s.name for s in able)),
            MODEL,
            generates=request.output_tokens > 0,
            stream=True,
            prompt_tokens=max(1, min(round(guess), longest)),
            prefix=request.blocks,
            pin=able[0].name if pinned else None,
            excluded=frozenset() if pinned else frozenset(self.specs[i].name for i in job.tried),
        )
        ticket = self.scheduler.submit(
            demand(info, MODEL, OVERFLOW_AFTER_S), request.key, now, max_wait_s=1e9
        )
        if ticket.placement is not None:
            self._go(job, ticket)
        else:
            ticket.on_change = lambda: self._go(job, ticket)

    def _key(self, name: str, nodes: frozenset[str]) -> ApiKey:
        """The caller's key. It is limited to the nodes where its request fits."""
        key = self.keys.get((name, nodes))
        if key is None:
            limits = KeyLimits(nodes=tuple(sorted(nodes)))
            key = self.keys[name, nodes] = ApiKey(name, name, b"", "", limits, 1, 0.0)
        return key

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
        if job.bound is None:
            self.suspects.setdefault(id(job), []).append(placement)
        if not job.failed:
            self.arrive(job, now)

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
