"""One model on one node, and which of many to ask about. Pure.

A lane holds all that is known of its model there; the rules that change it are the scheduler's.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final, NamedTuple

from wai_protocol.status import ModelStatus

from .concurrency import Beginning, Concurrency
from .cooldown import Cooldown
from .demands import Demand, Readiness
from .ledger import Claim, Ledger
from .pace import PRIOR_ALONE_S, Pace
from .prefixes import WarmPrefixes
from .rates import PRIOR_DECODE_TPS, PRIOR_PREFILL_TPS, Rate
from .scoring import CONTENTION, has_prefill_backlog
from .selection import TIE_S, Decision, Reason

# A provider says by a 429 that it is given too much; its places are not counted here.
PROVIDER_SLOTS: Final = 1 << 20
# To look closely at a node costs about 2 µs. Up to so many for a model all are looked at...
MANY: Final = 16
# ... and of more these first: of six that are equal, one more to choose from makes no difference.
LISTED: Final = 6


class Lane:
    """One model on one node: all that is known of it."""

    __slots__ = (
        "concurrency",
        "cooldown",
        "decode",
        "ledger",
        "left_at",
        "load_from",
        "load_s",
        "node",
        "own",
        "pace",
        "placed_at",
        "prefill",
        "readiness",
        "rtt_s",
        "warm",
    )

    def __init__(self, node: str, status: ModelStatus, *, own: bool) -> None:
        self.node = node
        self.own = own
        self.ledger = Ledger(status)
        self.prefill = Rate()
        self.decode = Rate()
        self.pace = Pace(status.slots_total)
        self.concurrency = Concurrency()
        self.warm = WarmPrefixes()
        self.cooldown = Cooldown()
        self.readiness = Readiness.READY
        self.left_at: float | None = None  # when it was last ready, where it is away now
        self.rtt_s = 0.0
        self.placed_at = -math.inf  # when it was given a request last
        self.load_s = 0.0  # what its node needs to load the model, 0.0 where it is in memory
        self.load_from = 0.0  # when it was given the request that it is loaded for

    @property
    def slots(self) -> int:
        """How many requests it serves at once: told, or learned. Where it is not known and others
        use it too, one of ours always goes."""
        total = self.ledger.status.slots_total
        if total is not None:
            return total
        if not self.own:
            return PROVIDER_SLOTS
        limit, foreign = self.concurrency.limit, self.ledger.foreign
        return limit if limit > foreign else foreign + 1

    @property
    def unsure(self) -> int:
        """How many of its slots are only a try: it may let a request wait that is given one."""
        concurrency = self.concurrency
        if not concurrency.unsure or not self.learns_limit:
            return 0
        return concurrency.unsure if concurrency.limit > self.ledger.foreign else 0

    @property
    def free(self) -> int:
        """Slots that nobody holds, 0 where it gets no work."""
        if self.readiness is not Readiness.READY:
            return 0
        return max(0, self.slots - self.ledger.busy)

    @property
    def paces_prompts(self) -> bool:
        """Whether prompts are held back while it has enough to read: not before its speed is
        known, where its slots are not; nor while it reads for nothing but embeddings, of which
        servers work on as many at once as they have slots."""
        if not self.ledger.writes:
            return False
        told = self.ledger.status.slots_total is not None
        return told or (self.own and self.prefill.tps is not None)

    def open(self, now: float) -> bool:
        """Whether it can be given a request now: a slot is free, and what it has is soon read."""
        if not self.free:
            return False
        tps = self.prefill.tps
        if tps is None or not self.paces_prompts:
            return True
        return not has_prefill_backlog(self.ledger.prefill_ahead(tps, now), tps, self.rtt_s)

    def claim(
        self, fresh_tokens: float, output_tokens: float, now: float, *, streams: bool
    ) -> Claim:
        """Take a slot for a request: see `Ledger.claim`."""
        ahead, tps = 0.0, self.prefill.tps
        if tps is not None and self.learns_limit:
            ahead = self.ledger.prefill_ahead(tps, now)
        claim = self.ledger.claim(fresh_tokens, output_tokens, now, streams=streams)
        claim.expected_s = (ahead + fresh_tokens) * self.prefill.token_s + self.rtt_s
        if self.load_s:
            if self.ledger.claims == 1:  # it is loaded for this one
                self.load_from = now
            self.ledger.delay(claim, self.load_left(now))
        return claim

    def load_left(self, now: float) -> float:
        """How long it still takes until the model is in memory there."""
        begun_s = now - self.load_from if self.ledger.claims else 0.0
        return max(self.load_s - begun_s, 0.0)

    @property
    def learns_limit(self) -> bool:
        """Whether how much it does at once is to be learned."""
        return self.own and self.ledger.status.slots_total is None

    def beginning(self, claim: Claim, since_end_s: float, now: float) -> Beginning:
        """Note that the answer to `claim` began, `since_end_s` after another one ended."""
        ledger = self.ledger
        beginning = Beginning(
            now, claim.at, ledger.advancing, ledger.busy, claim.expected_s, since_end_s
        )
        self.concurrency.began(beginning, self.pace)
        return beginning

    def learn_limit(self, now: float) -> None:
        """Judge the late beginnings of a moment ago."""
        self.concurrency.judge(now, self.pace)

    @property
    def context(self) -> int | None:
        """Tokens of each slot; None: not told."""
        return self.ledger.status.context_tokens


class BestKnown(NamedTuple):
    """The best that was measured of any lane. What is not measured yet counts as this: so the node
    is tried soon."""

    prefill_tps: float
    decode_tps: float
    alone_s: float

    @property
    def prefill_token_s(self) -> float:
        """Seconds for one token of a prompt."""
        return 1.0 / self.prefill_tps

    def is_worse_than(self, lane: Lane) -> bool:
        """Whether something of `lane` is better than this."""
        return (
            (lane.prefill.tps or 0.0) > self.prefill_tps
            or (lane.decode.tps or 0.0) > self.decode_tps
            or 0.0 < lane.pace.alone_s < self.alone_s
        )

    @classmethod
    def of(cls, lanes: Collection[Lane]) -> BestKnown:
        """What is known of `lanes`, which serve one model."""
        return cls(
            max((lane.prefill.tps or 0.0 for lane in lanes), default=0.0) or PRIOR_PREFILL_TPS,
            max((lane.decode.tps or 0.0 for lane in lanes), default=0.0) or PRIOR_DECODE_TPS,
            min((lane.pace.alone_s for lane in lanes if lane.pace.alone_s), default=PRIOR_ALONE_S),
        )


class Shortlist:
    """Those of many lanes that a decision has to look at closely.

    The first are those that could be fastest if they were idle. When one of them has a slot, only
    what could beat it even so is looked at besides; a node that is at most as much better as an
    idle one is than a full one (`CONTENTION`) may be passed over. When none has, all are looked at.
    `known` says what a lane is taken for that was not measured yet.
    """

    __slots__ = ("_bounds", "_demand", "_lanes", "first")

    def __init__(
        self,
        demand: Demand,
        lanes: Collection[Lane],
        turn: int,
        known: BestKnown,
        generation_weight: float,
    ) -> None:
        self._demand = demand
        listed = list(lanes)
        start = turn * LISTED % len(listed)  # among equals each comes first in its turn
        self._lanes = listed = listed[start:] + listed[:start]
        prompt_tokens, prefix = demand.prompt_tokens, demand.prefix
        first = prefix[0] if prefix else None
        answer = generation_weight * demand.expected_output_tokens
        # The cost that each can't better: nothing to read before ours, all warm if anything is.
        bounds: list[float] = []
        token_s = known.prefill_token_s
        for lane in listed:
            pace = lane.pace
            alone_s, each_s = pace.alone_s, pace.each_s
            if not alone_s:
                alone_s = known.alone_s
                each_s = pace.assumed_each_s(alone_s)
            fresh = 1 if first in lane.warm.blocks else prompt_tokens
            bounds.append(
                fresh * (lane.prefill.token_s or token_s)
                + answer * (alone_s + 2 * each_s * lane.ledger.busy)
            )
        self._bounds = bounds
        last = sorted(bounds)[LISTED - 1]
        chosen = [lane for lane, bound in zip(listed, bounds, strict=True) if bound < last]
        for lane, bound in zip(listed, bounds, strict=True):
            if len(chosen) == LISTED:
                break
            if bound == last:
                chosen.append(lane)
        self.first = chosen

    def more(self, decision: Decision) -> Collection[Lane] | None:
        """What else must be looked at once `decision` was made among the first; None if nothing."""
        if decision.fault is not None or decision.wait or decision.reason in _RELUCTANT:
            return self._lanes
        chosen = next(s for s in decision.scores if s.node == decision.node)
        context = next(lane for lane in self.first if lane.node == decision.node).context
        if context is not None and context < self._demand.full_context:
            return self._lanes  # an answer that is not cut short comes before a quick one
        bound_s = chosen.cost_s / (1 + CONTENTION) - TIE_S
        if min(self._bounds) >= bound_s:
            return None
        able = [
            lane
            for lane, bound in zip(self._lanes, self._bounds, strict=True)
            if bound < bound_s or lane.node == decision.node
        ]
        listed = {lane.node for lane in self.first}
        return None if all(lane.node in listed for lane in able) else able


_RELUCTANT: Final = frozenset({Reason.LAST_RESORT, Reason.FAILOVER, Reason.OVERFLOW})
