"""One model on one node, and which of many to ask about. Pure.

A lane holds all that is known of its model there; the rules that change it are the scheduler's.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from wai_protocol.status import ModelStatus

from .cooldown import Cooldown
from .ledger import Ledger
from .prefixes import WarmPrefixes
from .rates import Rate
from .selection import CONTENTION, TIE_S, UNTOLD_SLOTS, Decision, Demand, Readiness, Reason, fed

# To look closely at a node costs about 2 µs. Up to so many for a model all are looked at...
MANY: Final = 16
# ... and of more these first: of six that are equal, one more to choose from makes no difference.
LISTED: Final = 6


class Lane:
    """One model on one node: all that is known of it."""

    __slots__ = (
        "cooldown",
        "decode",
        "ledger",
        "left_at",
        "node",
        "own",
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
        self.warm = WarmPrefixes()
        self.cooldown = Cooldown()
        self.readiness = Readiness.READY
        self.left_at: float | None = None  # when it was last ready, where it is away now
        self.rtt_s = 0.0
        self.placed_at = -math.inf  # when it was given a request last

    @property
    def free(self) -> int:
        """Slots that nobody holds, 0 where it gets no work."""
        if self.readiness is not Readiness.READY:
            return 0
        total = self.ledger.status.slots_total
        return max(0, (UNTOLD_SLOTS if total is None else total) - self.ledger.busy)

    def open(self, now: float) -> bool:
        """Whether it can be given a request now: a slot is free, and what it has is soon read."""
        if not self.free:
            return False
        tps, ledger = self.prefill.tps, self.ledger
        if tps is None or ledger.status.slots_total is None:
            return True
        return not fed(ledger.prefill_ahead(tps, now), tps, self.rtt_s)

    @property
    def context(self) -> int | None:
        """Tokens of each slot; None: not told."""
        return self.ledger.status.context_tokens


class Shortlist:
    """Those of many lanes that a decision has to look at closely.

    The first are those that could be fastest if they were idle. When one of them has a slot, only
    what could beat it even so is looked at besides; a node that is at most as much better as an
    idle one is than a full one (`CONTENTION`) may be passed over. When none has, all are looked at.
    """

    __slots__ = ("_bounds", "_demand", "_lanes", "first")

    def __init__(self, demand: Demand, lanes: Collection[Lane], turn: int) -> None:
        self._demand = demand
        listed = list(lanes)
        start = turn * LISTED % len(listed)  # among equals each comes first in its turn
        self._lanes = listed = listed[start:] + listed[:start]
        prompt_tokens, prefix = demand.prompt_tokens, demand.prefix
        first = prefix[0] if prefix else None
        # The time to first token that each can't better: idle, and all warm if anything is.
        self._bounds = bounds = [
            lane.rtt_s + (1 if first in lane.warm.blocks else prompt_tokens) * lane.prefill.token_s
            for lane in listed
        ]
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
