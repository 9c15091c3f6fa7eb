"""What each node would cost a request's caller, in seconds, by parts. Pure.

The time to the first token: loading the model, waiting for a slot, the prompts that its GPU must
read before ours, reading the part of ours that it has not cached, and the network. To this are
added, with a weight, the time to generate the answer beside those that are generated there already,
what a failure would cost where the node failed lately, and what others lose by ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from wai_protocol.status import ModelStatus

from .demands import Demand, Readiness, most_context

# What a second until the first token counts beside a second of generating the answer. People notice
# the first token most, and an answer is read while it grows: with 20, half a second until the first
# token is given away only for ten seconds of a shorter answer.
FIRST_TOKEN_WEIGHT: Final = 20.0
# Ways to nodes that differ by less are equally long: a ping varies as much.
EQUAL_RTT_S: Final = 0.01
# What a failed try costs its caller at least: the time until it failed, and the start elsewhere.
FAILED_TRY_S: Final = 1.0
# A busy node's prefill is slowed by the decoding beside it; its learned rate is that of its mean
# load, so this only says that a full node is a little slower than that and an idle one a little
# faster.
CONTENTION: Final = 0.1
# A node with prompts to read for this long has a backlog: one more is kept here until then, where
# it can still go elsewhere and let others pass. Longer than the news of a read prompt takes, and
# the next one's way.
BACKLOG_S: Final = 0.3
# How much one whose prompt is still to be read on a node counts there beside one that waits for it:
# less, because it is before ours. With nothing, a quick node fills up while others stand idle.
CROWDED: Final = 0.6
# Waiting for a busy node must promise this much less than the best free slot: the slot is certain.
WAIT_GAIN: Final = 0.8


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
    prompts are held back here while it has many to read. `load_s`: until the model is in memory
    there. (A named tuple and not a dataclass: one is made per node and request, and it costs a
    third.)
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
    load_s: float = 0.0

    @property
    def free(self) -> int:
        """Slots that nobody holds and nobody ahead of us waits for."""
        return self.slots - self.busy - self.waiting


class Score(NamedTuple):
    """One candidate's expected times in seconds, by parts; or why it is out.

    `load_s`: for the model to be loaded; `wait_s`: for a slot and the prompts before ours;
    `prefill_s`: for our own; `rtt_s`: the way there. `generation_s`: from the first token to the
    end of the answer. `failure_s`: what its failures of late, and an answer that is overdue there,
    are expected to cost. `excluded` is "" for a candidate that can serve. `cost_s` is what decides:
    the expected time to first token, the generation by its weight, the failures, how doubtful a
    wait is, and how much longer our request makes it for the others there.
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
    load_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Expected time to first token."""
        return self.load_s + self.wait_s + self.prefill_s + self.rtt_s


def score_all(
    demand: Demand, candidates: Sequence[Candidate], generation_weight: float
) -> tuple[Score, ...]:
    """The expected times on each of `candidates`, or why it can't serve `demand`. One loop: it is
    most of what a decision costs."""
    prompt_tokens, api, least_context = demand.prompt_tokens, demand.api, demand.least_context
    route = demand.route
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
            load_s,
        ) = candidate
        context = model.context_tokens
        able = (
            anywhere
            and readiness is Readiness.READY
            and (context is None or context >= least_context)
            and model.ready
            and api in model.apis
            and (model.routes is None or route in model.routes)
            and (own or not demand.local_only)
        )
        excluded = "" if able else exclusion(demand, candidate)
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
            load_s
            + wait_s
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
            load_s,
        )
        scores.append(_new(Score, figures))
    return tuple(scores)


# A named tuple without the check of its arguments: half of what making one costs.
_new: Final = tuple.__new__


def has_prefill_backlog(ahead_tokens: float, prefill_tps: float, rtt_s: float) -> bool:
    """Whether a node has so much to read that one more is better kept here for now."""
    return ahead_tokens > prefill_tps * max(BACKLOG_S, 2 * rtt_s)


def exclusion(demand: Demand, candidate: Candidate) -> str:
    """Why `candidate` can't serve `demand`, in a word; "" if it can."""
    model = candidate.model
    context = most_context(model)
    if demand.pin is not None and candidate.node != demand.pin:
        return "not pinned"
    if demand.nodes is not None and candidate.node not in demand.nodes:
        return "not allowed"
    if candidate.node in demand.avoid:
        return "tried"
    if demand.local_only and not candidate.own:
        return "not local"
    if not model.has_route(demand.api, demand.route):
        return "other API"
    if context is not None and context < demand.least_context:
        return "context"
    if not model.ready:
        return "loading"
    if candidate.readiness is not Readiness.READY:
        return str(candidate.readiness.value)
    return ""
