"""Which node serves a request: the one that costs its caller the least time.

One score, in seconds, for every node that serves the model. The time to the first token: waiting
for a slot, the prompts that its GPU must read before ours, reading the part of ours that it has not
cached, and the network. To this are added, with a weight, the time to generate the answer beside
those that are generated there already, and what a failure would cost where the node failed lately.
A busy node may be the best choice; then the request waits for it. A provider is chosen only when
none of our own nodes can serve, or none in the time allowed.

Pure: values in, `Decision` out. It claims nothing (`ledger`), knows no clock, and does not say
what is done while waiting (`scheduler`).
"""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError
from wai_protocol.status import ModelStatus

from .fingerprints import Fingerprint

# What a second until the first token counts beside a second of generating the answer. People notice
# the first token most, and an answer is read while it grows: with 20, half a second until the first
# token is given away only for ten seconds of a shorter answer.
FIRST_TOKEN_WEIGHT: Final = 20.0
# Ways to nodes that differ by less are equally long: a ping varies as much.
EQUAL_RTT_S: Final = 0.01
# What a failed try costs its caller at least: the time until it failed, and the start elsewhere.
FAILED_TRY_S: Final = 1.0
# A prompt must leave room for some answer, or the upstream takes the slot only to stop at once.
MIN_ANSWER_TOKENS: Final = 16
# A busy node's prefill is slowed by the decoding beside it; its learned rate is that of its mean
# load, so this only says that a full node is a little slower than that and an idle one a little
# faster.
CONTENTION: Final = 0.1
# Estimates closer than this are equal: a network's jitter, and how well rates are known.
TIE_S: Final = 0.001
TIE_RATIO: Final = 1.02
# A node with prompts to read for this long has a backlog: one more is kept here until then, where
# it can still go elsewhere and let others pass. Longer than the news of a read prompt takes, and
# the next one's way.
BACKLOG_S: Final = 0.3
# How much one whose prompt is still to be read on a node counts there beside one that waits for it:
# less, because it is before ours. With nothing, a quick node fills up while others stand idle.
CROWDED: Final = 0.6
# Waiting for a busy node must promise this much less than the best free slot: the slot is certain.
WAIT_GAIN: Final = 0.8
# What it may take longer where an answer of the usual length has room, if the caller named none:
# most answers are shorter than the mean, which is no reason to stand in a long line.
ROOM_S: Final = 10.0
# How long a request may wait for a slot of ours, where a provider could take it at once. Money and
# privacy are worth more than seconds; callers' patience, and the limits of proxies, are not longer.
OVERFLOW_AFTER_S: Final = 10.0


class Readiness(enum.Enum):
    """Whether a node can be given work."""

    READY = "ready"
    DRAINING = "draining"
    COOLING = "cooling"  # failed lately; taken only where nobody else can serve
    AWAY = "away"  # not connected now, or kept out of service by its owner


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


class Candidate(NamedTuple):
    """A node that serves the model, as the relay sees it at this moment.

    `slots`: how many requests it serves at once, told or learned, of which `unsure` are a try.
    `busy`: those in use, our own claims that the node has not yet reported included. `waiting`:
    requests ahead of this one for its next free slot, with `waiting_tokens` of prompts to read.
    `reading`: how many that hold slots are not read yet, with `prefill_ahead` prompt tokens still
    to go. `slot_s`: how long a slot is expected to stay taken. `still_s`: how long nobody got one
    of its slots while ours waited. Rates in tokens per second; `warm_tokens` of the prompt need no
    reading. A token of an answer takes `alone_s`, and `each_s` more for each other answer.
    `failure_rate`: the share of its last requests that it failed, each after `failed_try_s`.
    `silent_s`: how long the answer is overdue that should have begun first there. `paces_prompts`:
    prompts are held back here while it has many to read. (A named tuple and not a dataclass: one is
    made per node and request, and it costs a third.)
    """

    node: str
    model: ModelStatus
    prefill_tps: float
    busy: int = 0
    waiting: int = 0
    waiting_tokens: float = 0.0
    reading: int = 0
    prefill_ahead: float = 0.0
    slot_s: float = 0.0
    still_s: float = 0.0
    warm_tokens: int = 0
    rtt_s: float = 0.0
    readiness: Readiness = Readiness.READY
    own: bool = True
    slots: int = 1
    unsure: int = 0
    alone_s: float = 0.0
    each_s: float = 0.0
    failure_rate: float = 0.0
    failed_try_s: float = 0.0
    silent_s: float = 0.0
    paces_prompts: bool = True

    @property
    def free(self) -> int:
        """Slots that nobody holds and nobody ahead of us waits for."""
        return self.slots - self.busy - self.waiting


class Score(NamedTuple):
    """One candidate's expected times in seconds, by parts; or why it is out.

    `wait_s`: for a slot and the prompts before ours; `prefill_s`: for our own; `rtt_s`: the way
    there. `generation_s`: from the first token to the end of the answer. `failure_s`: what its
    failures of late, and an answer that is overdue there, are expected to cost. `excluded` is ""
    for a candidate that can serve. `cost_s` is what decides: the expected time to first token, the
    generation by its weight, the failures, how doubtful a wait is, and how much longer our request
    makes it for the others there.
    """

    node: str
    wait_s: float = 0.0
    prefill_s: float = 0.0
    rtt_s: float = 0.0
    warm_tokens: int = 0
    free: int = 0
    excluded: str = ""
    cost_s: float = 0.0
    generation_s: float = 0.0
    failure_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Expected time to first token."""
        return self.wait_s + self.prefill_s + self.rtt_s


class Decision(NamedTuple):
    """What to do with a request now. Exactly one of these holds: `node` is set and `wait` is False
    (send it there), `node` is set and `wait` is True (wait for it), `fault` is set (refuse)."""

    node: str | None
    wait: bool
    reason: Reason | None
    scores: tuple[Score, ...]
    fault: Fault | None = None
    message: str = ""

    def shortened(self, count: int) -> Decision:
        """The same with the `count` best of the scores and the chosen one: they are kept for
        `wai explain` as long as the request is remembered."""
        if len(self.scores) <= count + 1:
            return self
        best = heapq.nsmallest(count, self.scores, key=_rank)
        best += [s for s in self.scores if s.node == self.node and s not in best]
        return self._replace(scores=tuple(best))

    def error(self) -> WaiError:
        """The refusal as an error for the caller. Only for a decision with a `fault`."""
        fault = self.fault or Fault.NO_NODE
        if fault is Fault.NO_NODE:
            return NodeUnavailable(self.message, retry_after_s=RETRY_AFTER_S)
        return RequestError(self.message, fault)


def _rank(score: Score) -> tuple[bool, float]:
    return bool(score.excluded), score.cost_s


# When no node can serve: about what a node needs to come back after its connection was lost.
RETRY_AFTER_S: Final = 2.0


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
            return _refusal(demand, candidates, scores)
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


def score_all(
    demand: Demand, candidates: Sequence[Candidate], generation_weight: float
) -> tuple[Score, ...]:
    """The expected times on each of `candidates`, or why it can't serve `demand`. One loop: it is
    most of what a decision costs."""
    prompt_tokens, api, least_context = demand.prompt_tokens, demand.api, demand.least_context
    anywhere = demand.pin is None and demand.nodes is None and not demand.avoid
    output_tokens = demand.expected_output_tokens
    nearest_s = min([c.rtt_s for c in candidates], default=0.0)
    equal_until_s = nearest_s + EQUAL_RTT_S
    scores: list[Score] = []
    for candidate in candidates:
        (
            node,
            model,
            prefill_tps,
            busy,
            waiting,
            waiting_tokens,
            reading,
            ahead,
            slot_s,
            still_s,
            warm,
            rtt_s,
            readiness,
            own,
            slots,
            unsure,
            alone_s,
            each_s,
            failure_rate,
            failed_try_s,
            silent_s,
            paces_prompts,
        ) = candidate
        context = model.context_tokens
        able = (
            anywhere
            and readiness is Readiness.READY
            and (context is None or context >= least_context)
            and model.ready
            and api in model.apis
            and (own or not demand.local_only)
        )
        excluded = "" if able else _exclusion(demand, candidate)
        if not slots:
            scores.append(Score(node, excluded=excluded or "no slots"))
            continue
        free = slots - busy - waiting
        wait_s = (ahead + waiting_tokens) / prefill_tps
        doubt_s = 0.0
        if free <= unsure:
            # Answers' lengths are so skewed that a slot long held is not nearer its end: with n
            # held for `slot_s` each on average, one comes free every slot_s / n. Prompts are read
            # meanwhile. That nothing came free counts against it: an estimate that proved wrong
            # must not hold anyone for ever. One that is only a try is no free slot: it is for who
            # would wait here.
            wait_s = max(wait_s, (1 + unsure - free) * slot_s / (slots - unsure))
            doubt_s = wait_s * (1 / WAIT_GAIN - 1) + still_s
        elif paces_prompts and has_prefill_backlog(ahead, prefill_tps, rtt_s):
            free = 0
        fresh = prompt_tokens - warm
        others = busy if busy < slots else slots - 1
        crowd = busy / slots if busy < slots else 1.0
        prefill_s = (fresh if fresh > 1 else 1) / prefill_tps * (1.0 + CONTENTION * crowd)
        generation_s = output_tokens * (alone_s + each_s * others)
        # Who has long been silent is expected to be so for as long again: it hangs, or has more to
        # do than we know. Else it would be given all it has slots for before its first failure.
        failure_s = silent_s
        if failure_rate:
            if failed_try_s < FAILED_TRY_S:
                failed_try_s = FAILED_TRY_S
            failure_s += failure_rate / (1.0 - failure_rate) * (failed_try_s + wait_s + prefill_s)
        # Where others are in line, ours makes as many wait as long as it takes to read; and each
        # answer in progress becomes slower by ours as ours does by it: what is fastest for one must
        # not be slowest for all.
        cost_s = (
            wait_s
            + doubt_s
            + prefill_s * (1 + waiting + CROWDED * reading)
            + (rtt_s if rtt_s >= equal_until_s else nearest_s)
            + generation_weight * (generation_s + output_tokens * each_s * others)
            + failure_s
        )
        figures = (
            node,
            wait_s,
            prefill_s,
            rtt_s,
            warm,
            free,
            excluded,
            cost_s,
            generation_s,
            failure_s,
        )
        scores.append(_new(Score, figures))
    return tuple(scores)


# A named tuple without the check of its arguments: half of what making one costs.
_new: Final = tuple.__new__


def has_prefill_backlog(ahead_tokens: float, prefill_tps: float, rtt_s: float) -> bool:
    """Whether a node has so much to read that one more is better kept here for now."""
    return ahead_tokens > prefill_tps * max(BACKLOG_S, 2 * rtt_s)


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


def _exclusion(demand: Demand, candidate: Candidate) -> str:
    model = candidate.model
    context = model.context_tokens
    if demand.pin is not None and candidate.node != demand.pin:
        return "not pinned"
    if demand.nodes is not None and candidate.node not in demand.nodes:
        return "not allowed"
    if candidate.node in demand.avoid:
        return "tried"
    if demand.local_only and not candidate.own:
        return "not local"
    if demand.api not in model.apis:
        return "other API"
    if context is not None and context < demand.least_context:
        return "context"
    if not model.ready:
        return "loading"
    if candidate.readiness is not Readiness.READY:
        return str(candidate.readiness.value)
    return ""


def _roomy(
    demand: Demand, candidates: Sequence[Candidate], scores: Sequence[Score], able: Sequence[int]
) -> Sequence[int]:
    """Those of `able` where the answer is not cut short, if there are such and they are worth their
    wait; else all."""
    if len(able) == 1:
        return able
    full = demand.full_context
    roomy = [i for i in able if (candidates[i].model.context_tokens or full) >= full]
    if not roomy or len(roomy) == len(able) or demand.max_output_tokens is not None:
        return roomy or able
    soonest_s = min(scores[i].cost_s for i in able)
    return roomy if min(scores[i].cost_s for i in roomy) <= soonest_s + ROOM_S else able


def _best(
    candidates: Sequence[Candidate], scores: Sequence[Score], able: Sequence[int], turn: int
) -> int:
    """The index of the best of `able`: a free slot, or a busy node that is well worth waiting
    for."""
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


def _refusal(
    demand: Demand, candidates: Sequence[Candidate], scores: tuple[Score, ...]
) -> Decision:
    """Nobody can serve it: say the one thing that would have to change."""

    def refuse(fault: Fault, message: str) -> Decision:
        return Decision(None, wait=False, reason=None, scores=scores, fault=fault, message=message)

    excluded = {s.excluded for s in scores}
    if demand.pin is not None:
        mine = [s.excluded for s in scores if s.node == demand.pin]
        if not mine:
            text = f"No node named '{demand.pin}' serves the model '{demand.model}'."
            return refuse(Fault.NODE_NOT_FOUND, text)
        excluded = set(mine)
    if not excluded - {"not allowed", "not local", "not pinned"} and excluded:
        return refuse(Fault.FORBIDDEN, "This API key may not use the nodes that serve this model.")
    if not excluded:
        return refuse(Fault.MODEL_NOT_FOUND, f"No node serves the model '{demand.model}'.")
    passing = {"loading", "no slots", *(r.value for r in Readiness)}
    if "context" in excluded and not excluded & passing:
        largest = max(
            c.model.context_tokens or 0
            for c, s in zip(candidates, scores, strict=True)
            if s.excluded == "context"
        )
        text = (
            f"This request needs a context of about {demand.least_context} tokens; the largest for"
            f" '{demand.model}' has {largest}. Shorten the prompt or give a node more context."
        )
        return refuse(Fault.CONTEXT_EXCEEDED, text)
    if excluded <= {"other API", "not allowed", "not local", "not pinned"}:
        text = f"No node serves '{demand.model}' through this API; try another of the relay's APIs."
        return refuse(Fault.MODEL_NOT_FOUND, text)
    where = f"The node '{demand.pin}'" if demand.pin else f"Every node for '{demand.model}'"
    why = ", ".join(sorted(excluded & passing))
    return refuse(Fault.NO_NODE, f"{where} is out of service now ({why}).")
