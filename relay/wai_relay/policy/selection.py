"""Which node serves a request: the one that costs its caller the least time.

One score, in seconds, for every node that serves the model (`scoring`). A busy node may be the best
choice; then the request waits for it. A provider is chosen only when none of our own nodes can
serve, or none in the time allowed.

Pure: values in, `Decision` out. It claims nothing (`ledger`), knows no clock, and does not say
what is done while waiting (`scheduler`).
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError

from .demands import Demand, Readiness, most_context
from .refusals import refusal
from .scoring import FIRST_TOKEN_WEIGHT, Candidate, Score, exclusion, score_all

# Estimates closer than this are equal: a network's jitter, and how well rates are known.
TIE_S: Final = 0.001
TIE_RATIO: Final = 1.02
# What it may take longer where an answer of the usual length has room, if the caller named none:
# most answers are shorter than the mean, which is no reason to stand in a long line.
ROOM_S: Final = 10.0
# When no node can serve: about what a node needs to come back after its connection was lost.
RETRY_AFTER_S: Final = 2.0


class Reason(enum.StrEnum):
    """Why a node was chosen or waited for, in a word (`X-WAI-Reason`)."""

    PINNED = "pinned"
    ONLY = "only"
    WARM = "warm"
    FASTEST = "fastest"
    LEAST_BUSY = "least-busy"
    LAST_RESORT = "last-resort"
    FAILOVER = "failover"  # a provider: none of our nodes can serve it
    OVERFLOW = "overflow"  # a provider: none of our nodes can serve it in time
    BUSY = "busy"


class Decision(msgspec.Struct, frozen=True):
    """What to do with a request now. Exactly one of these holds: `node` is set and `wait` is False
    (send it there), `node` is set and `wait` is True (wait for it), `fault` is set (refuse; with
    `retry_after_s` where it may be served later)."""

    node: str | None
    wait: bool
    reason: Reason | None
    scores: tuple[Score, ...]
    fault: Fault | None = None
    message: str = ""
    retry_after_s: float | None = None

    def shortened(self, count: int) -> Decision:
        """The same with the `count` best of the scores and the chosen one: they are kept for
        `wai explain` as long as the request is remembered."""
        if len(self.scores) <= count + 1:
            return self
        best = heapq.nsmallest(count, self.scores, key=_rank)
        best += [s for s in self.scores if s.node == self.node and s not in best]
        return replace(self, scores=tuple(best))

    def error(self) -> WaiError:
        """The refusal as an error for the caller. Only for a decision with a `fault`."""
        fault = self.fault or Fault.NO_NODE
        if fault is Fault.NO_NODE:
            return NodeUnavailable(self.message, retry_after_s=self.retry_after_s)
        return RequestError(self.message, fault)


def _rank(score: Score) -> tuple[bool, float]:
    return bool(score.excluded), score.cost_s


def select(
    demand: Demand,
    candidates: Sequence[Candidate],
    *,
    waited_s: float = 0.0,
    turn: int = 0,
    generation_weight: float = 1 / FIRST_TOKEN_WEIGHT,
) -> Decision:
    """Choose among `candidates`, which are all the nodes that are known to serve the model.

    `waited_s`: how long the request waits already. `turn`: any number that changes from
    request to request; it decides between equals, so that the first in the list is not always
    taken. `generation_weight`: what a second of generation counts beside one of waiting.
    """
    scores = score_all(demand, candidates, generation_weight)
    able = [i for i, s in enumerate(scores) if not s.excluded]
    reason: Reason | None = None
    if not able:  # rather a node that failed lately than a refusal
        able = [i for i, s in enumerate(scores) if s.excluded == Readiness.COOLING.value]
        reason = Reason.LAST_RESORT
        if not able:
            largest = _largest(demand, candidates, scores)
            if not largest:
                fault, message, passing = refusal(demand, candidates, scores)
                retry_after_s = RETRY_AFTER_S if passing else None
                return Decision(
                    *(None, False, None, scores),
                    fault=fault,
                    message=message,
                    retry_after_s=retry_after_s,
                )
            # An estimate is no reason to refuse: who has the most room is asked, also where one
            # with more is away.
            hopeful = select(
                demand._replace(hopeful=True),
                largest,
                waited_s=waited_s,
                turn=turn,
                generation_weight=generation_weight,
            )
            others = tuple(s for s in scores if all(s.node != one.node for one in largest))
            return replace(hopeful, scores=hopeful.scores + others)
    own = [i for i in able if candidates[i].own]
    weighed = _roomy(demand, candidates, scores, own or able)
    best = _best(candidates, scores, weighed, turn)
    if len(own) < len(able) and demand.pin is None and reason is None:
        if not own:
            reason = Reason.FAILOVER
        elif scores[best].free <= 0 and waited_s + scores[best].wait_s > demand.overflow_after_s:
            best = _best(candidates, scores, [i for i in able if not candidates[i].own], turn)
            reason = Reason.OVERFLOW
    if reason is None:
        reason = _reason(demand, scores, weighed, best)
    wait = scores[best].free <= 0
    return Decision(scores[best].node, wait, Reason.BUSY if wait else reason, scores)


def _largest(
    demand: Demand, candidates: Sequence[Candidate], scores: Sequence[Score]
) -> list[Candidate]:
    """Those with the largest context of the candidates that lack nothing but context, if the prompt
    is not surely too long for them."""
    least = demand.certain_context
    hopeful = [
        (most_context(candidate.model) or 0, candidate)
        for candidate, score in zip(candidates, scores, strict=True)
        if score.excluded == "context"
        and (most_context(candidate.model) or 0) >= least
        and not exclusion(demand._replace(hopeful=True), candidate)
    ]
    most = max((context for context, _ in hopeful), default=0)
    return [candidate for context, candidate in hopeful if context == most]


def _roomy(
    demand: Demand, candidates: Sequence[Candidate], scores: Sequence[Score], able: Sequence[int]
) -> Sequence[int]:
    """Those of `able` where the answer is not cut short, if there are such and they are worth their
    wait; else all."""
    if len(able) == 1:
        return able
    full = demand.full_context
    roomy = [i for i in able if (candidates[i].model.context_tokens or full) >= full]
    if not roomy:
        roomy = [i for i in able if (most_context(candidates[i].model) or full) >= full]
    limited = demand.max_output_tokens is not None or demand.asked_context
    if not roomy or len(roomy) == len(able) or limited:
        return roomy or able
    soonest_s = min(scores[i].cost_s for i in able)
    return roomy if min(scores[i].cost_s for i in roomy) <= soonest_s + ROOM_S else able


def _best(
    candidates: Sequence[Candidate], scores: Sequence[Score], able: Sequence[int], turn: int
) -> int:
    """The index of the best of `able`: a free slot, or a busy node that is well worth waiting
    for."""
    if len(able) == 1:
        return able[0]
    totals = [(scores[i].cost_s, i) for i in able]
    least = min(totals)[0]
    bound = max(least + TIE_S, least * TIE_RATIO)
    ties = [i for total, i in totals if total <= bound]
    if len(ties) == 1:
        return ties[0]
    if (free := [i for i in ties if scores[i].free > 0]) and len(free) < len(ties):
        ties = free
    used = [1.0 - scores[i].free / candidates[i].slots for i in ties]
    least_used = min(used)
    ties = [i for i, u in zip(ties, used, strict=True) if u <= least_used]
    return ties[turn % len(ties)]


def _reason(demand: Demand, scores: Sequence[Score], able: Sequence[int], best: int) -> Reason:
    if demand.pin is not None:
        return Reason.PINNED
    if len(able) == 1:
        return Reason.ONLY
    mine = scores[best]
    warm = mine.warm_tokens
    if warm and all(scores[i].warm_tokens < warm for i in able if i != best):
        return Reason.WARM
    bound = mine.cost_s + TIE_S
    for i in able:
        if scores[i].cost_s <= bound and i != best:
            return Reason.LEAST_BUSY
    return Reason.FASTEST
