"""Who goes where, and who waits: the relay's one place that puts requests on nodes.

It keeps what is known of every model on every node (`ledger`, `rates`, `prefixes`, `cooldown`),
asks `selection` about each request, and lets wait what has no slot yet (`fair_queue`). A waiting
request is bound to no node: whenever a slot comes free or a node changes, those that wait are
looked at again, in fair order, and each that gets nothing reserves a place in the line of the
node it waits for.

Pure state machine: no I/O, `now` is monotonic seconds. `dispatch` is its shell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Literal, assert_never

from wai_protocol.errors import Fault, NodeUnavailable
from wai_protocol.status import NodeStatus

from .fair_queue import MAX_WAITING, FairQueue, full
from .lanes import MANY, Lane, Shortlist
from .rates import PRIOR_DECODE_TPS, PRIOR_PREFILL_TPS, OutputLengths
from .selection import (
    ASSUMED_SLOTS,
    RETRY_AFTER_S,
    Candidate,
    Decision,
    Demand,
    Readiness,
    select,
    serves,
)
from .tickets import Placement, Result, Ticket, Tokens

__all__ = ["Placement", "Result", "Scheduler", "Ticket", "Tokens"]

# How long a request may wait for a slot. Callers' own limits are 60 s and more; what waits longer
# than half of that on a full fleet is better tried elsewhere while there is time.
MAX_WAIT_S: Final = 30.0
# A node whose connection was just lost is dialling again: a request waits so long for it before it
# is refused. One whose address changed is back in a second, one that was restarted in five.
RETURN_S: Final = 10.0
# While something waits for a busy node though another has a free slot, it is looked at this
# often: the longer the busy one stands still, and the longer the line, the better the free slot
# looks. Below what people notice, and with the longest line two hundredths of a core.
TICK_S: Final = 0.1
# Those decided about in one go, in fair order. With more waiting than this, all that can change by
# looking further is who of the last gets a slot that the first thirty-two declined.
PLAN_DEPTH: Final = 32
# A reading shorter than this says more about the way there than about the node's speed.
LEAST_SAMPLE_TOKENS: Final = 64
# Fewer tokens than this arrive together, and seem to take no time.
LEAST_SAMPLE_ANSWER: Final = 8
# A question does not wait behind a book: of one key's requests, those whose prompt is shorter than
# this share of the usual one are short, and pass the others...
SHORT: Final = 0.45
# ... as long as those, first come, first served, would soon have their turn: one lets so many pass
# that come after it, less two for each that waits before it. So the short ones are quick while the
# line is short, and who comes when it is long waits as he would without that: those are the waits
# by which a line is judged. Counted in requests, it is the same for short prompts and for long
# ones, on fast fleets and on slow ones. At 95 % load of the traces of the results, 80 loses a
# median to a policy that lets others starve, and 96 a p99 to first come, first served: see
# docs/routing.md.
PASSERS: Final = 92
PASSERS_PER_WAITING: Final = 2
# The usual length of a prompt follows some fifty requests.
USUAL_FADE: Final = 0.02
_NO_LINE: Final = (0, 0.0)
# A named tuple without the check of its arguments: half of what making one costs.
_new: Final = tuple.__new__


class Scheduler:
    """Places requests on the nodes it is told of. Belongs to one loop."""

    def __init__(self, *, queue_limit: int = MAX_WAITING) -> None:
        self._lanes: dict[str, dict[str, Lane]] = {}  # model -> node -> lane
        self._queues: dict[str, FairQueue[Ticket]] = {}  # model -> those that wait
        self._queue_limit = queue_limit
        self._lengths = OutputLengths()
        self._usual: dict[str, float] = {}  # model -> length of a prompt, a mean that fades
        self._turn = 0  # decisions made
        self._tick_at: float | None = None

    # -- the fleet
    def update(
        self,
        node: str,
        status: NodeStatus,
        now: float,
        *,
        readiness: Readiness = Readiness.READY,
        rtt_s: float = 0.0,
        own: bool = True,
    ) -> None:
        """What a node serves now, and whether it can be given work. Models it no longer has are
        forgotten."""
        if status.draining:
            readiness = Readiness.DRAINING
        models = {model.id: model for model in status.models}
        for model_id in [
            m for m, lanes in self._lanes.items() if node in lanes and m not in models
        ]:
            self._forget(model_id, node)
        for model_id, model in models.items():
            lanes = self._lanes.setdefault(model_id, {})
            lane = lanes.get(node)
            known = lane is not None
            if lane is None:
                lane = lanes[node] = Lane(node, model, own=own)
            old = lane.ledger.status
            if readiness is Readiness.READY:
                lane.left_at = None
            elif readiness is Readiness.AWAY and lane.readiness is Readiness.READY and known:
                lane.left_at = now
            free = lane.free if known and lane.open(now) else 0
            changed = not known or readiness is not lane.readiness
            lane.readiness = readiness
            lane.rtt_s = rtt_s
            lane.ledger.report(model, now)
            if model.prefill_tps != old.prefill_tps or lane.prefill.tps is None:
                lane.prefill.add_reported(model.prefill_tps)
            if model.decode_tps != old.decode_tps or lane.decode.tps is None:
                lane.decode.add_reported(model.decode_tps)
            if model.context_tokens:
                lane.warm.resize((model.slots_total or ASSUMED_SLOTS) * model.context_tokens)
            if changed or lane.free > free:
                self._plan(model_id, now)

    def remove(self, node: str) -> None:
        """A node is gone for good."""
        for model_id in [m for m, lanes in self._lanes.items() if node in lanes]:
            self._forget(model_id, node)

    def models(self) -> Iterable[str]:
        """The models that some node serves."""
        return self._lanes.keys()

    def nodes(self, model: str) -> Iterable[str]:
        """The nodes that serve `model`."""
        return self._lanes.get(model, {}).keys()

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot."""
        return sum(lane.ledger.claims for lanes in self._lanes.values() for lane in lanes.values())

    @property
    def decisions(self) -> int:
        """How often a request was decided about; what it costs beside a long line is seen by it."""
        return self._turn

    # -- requests
    def submit(
        self,
        demand: Demand,
        key_id: str,
        now: float,
        *,
        priority: int = 0,
        max_wait_s: float = MAX_WAIT_S,
        may_wait: bool = True,
    ) -> Ticket:
        """Place a request, or let it wait: then `ticket.placement` is None. One that takes no slot
        (counting tokens, say) needs none to be free: `may_wait` is False.

        Raises `RequestError` when it can't be served by anyone, `NodeUnavailable` when not now.
        """
        expected = self._lengths.expected(demand.model, key_id, demand.max_output_tokens)
        ticket = Ticket(
            demand._replace(expected_output_tokens=expected), key_id, now, now + max_wait_s
        )
        decision = self._decide(ticket, now, {})
        back_by = self._back_by(demand) if may_wait and decision.fault is Fault.NO_NODE else now
        if decision.fault is not None and back_by <= now:
            raise decision.error()
        usual = self._usual.get(demand.model, float(demand.prompt_tokens))
        self._usual[demand.model] = usual + USUAL_FADE * (demand.prompt_tokens - usual)
        queue = self._queues.get(demand.model)
        if decision.fault is not None:
            ticket.until = min(ticket.until, back_by)
        elif not may_wait or (queue is None and not decision.wait):
            self._place(ticket, decision, now)
            return ticket
        ticket.waits_for = decision.node or ""
        if queue is None:
            queue = self._queues[demand.model] = FairQueue(self._queue_limit)
        lets_pass = 0
        if demand.prompt_tokens >= SHORT * usual:
            lets_pass = max(0, PASSERS - PASSERS_PER_WAITING * queue.waiting(key_id))
        ticket.entry, displaced = queue.push(
            key_id,
            ticket,
            work=demand.prompt_tokens + expected,
            lets_pass=lets_pass,
            priority=priority,
        )
        if displaced is not None:
            displaced.item.refuse(full())
        self._plan(demand.model, now, newcomer=ticket)  # those before it keep what they wait for
        return ticket

    def cancel(self, ticket: Ticket, now: float) -> None:
        """Nobody wants it any more. A slot that it had is free again. Idempotent."""
        queue = self._queues.get(ticket.demand.model)
        if ticket.entry is not None and queue is not None:
            queue.discard(ticket.entry)
            self._tidy(ticket.demand.model)
        if ticket.placement is not None:
            self.finish(ticket.placement, now, Result.CANCELLED)

    def first_token(self, placement: Placement, now: float) -> None:
        """The answer's first content came: the prompt was read. Repeating it changes nothing."""
        took_s = placement.lane.ledger.first_token(placement.claim, now)
        if took_s is not None:
            placement.first_at = now
            placement.read_s = took_s - placement.lane.rtt_s
            self._plan(placement.demand.model, now, lane=placement.lane)

    def finish(
        self, placement: Placement, now: float, result: Result, tokens: Tokens | None = None
    ) -> None:
        """The request is over: its slot is free, and what it showed is learned. Idempotent."""
        lane = placement.lane
        if placement.over:
            return
        placement.over = True
        lane.ledger.release(placement.claim, now)
        match result:
            case Result.SERVED | Result.REFUSED:
                lane.cooldown.succeeded()
            case Result.FAILED:
                lane.cooldown.failed(now)
            case Result.CANCELLED | Result.SUSPECT:
                pass
            case _:
                assert_never(result)
        if tokens is not None:
            self._learn(placement, now, result, tokens)
        self._plan(placement.demand.model, now, lane=lane)

    def blame(self, placement: Placement, now: float) -> None:
        """A placement that ended as `SUSPECT` failed by its node's fault: another node served the
        same request. Where it failed everywhere, the request is at fault and nobody is blamed."""
        placement.lane.cooldown.blamed(now)

    # -- time
    def next_deadline(self) -> float | None:
        """When to call `handle_timeout`; None while nothing waits."""
        return self._tick_at

    def handle_timeout(self, now: float) -> None:
        """Refuse those that waited too long, and look again at the others."""
        if self._tick_at is None or now < self._tick_at:
            return
        self._tick_at = None
        for model, queue in list(self._queues.items()):
            for entry in queue:
                ticket = entry.item
                if now >= ticket.until:
                    queue.discard(entry)
                    ticket.refuse(_waited_too_long(ticket))
                elif now >= ticket.hurry_at:
                    ticket.hurry_at = math.inf
                    queue.hurry(entry)
            self._plan(model, now)

    # -- inside
    def _decide(self, ticket: Ticket, now: float, lines: dict[str, tuple[int, float]]) -> Decision:
        """Ask selection. `lines`: how many, and how many prompt tokens, wait for each node
        before. Of many nodes only those are asked about that can matter."""
        self._turn += 1
        demand = ticket.demand
        lanes = self._lanes.get(demand.model, {})
        shortlist: Shortlist | None = None
        asked: Iterable[Lane] = lanes.values()
        if len(lanes) > MANY:
            shortlist = Shortlist(demand, lanes.values(), self._turn)
            asked = shortlist.first
        while True:
            decision = select(
                demand,
                self._candidates(ticket, asked, lanes, now, lines),
                waited_s=now - ticket.at,
                turn=self._turn,
            )
            if shortlist is None:
                return decision
            more = shortlist.more(decision)
            if more is None:
                return decision
            asked, shortlist = more, None

    def _candidates(
        self,
        ticket: Ticket,
        asked: Iterable[Lane],
        lanes: dict[str, Lane],
        now: float,
        lines: dict[str, tuple[int, float]],
    ) -> list[Candidate]:
        candidates: list[Candidate] = []
        demand, since = ticket.demand, ticket.at
        prefix, prompt_tokens = demand.prefix, demand.prompt_tokens
        expected_tokens = demand.expected_output_tokens
        for lane in asked:
            node, ledger, readiness = lane.node, lane.ledger, lane.readiness
            if ledger.suspect:
                ledger.heal(now)
            prefill_tps = lane.prefill.tps or self._best_known(lanes, "prefill")
            decode_tps = lane.decode.tps or self._best_known(lanes, "decode")
            cooldown = lane.cooldown
            if not cooldown.well and cooldown.cooling(now) and readiness is Readiness.READY:
                readiness = Readiness.COOLING
            waiting, waiting_tokens = lines.get(node, _NO_LINE) if lines else _NO_LINE
            busy, reading, ahead, output_tokens = ledger.load(prefill_tps, now)
            status = ledger.status
            candidates.append(
                _new(
                    Candidate,
                    (
                        node,
                        status,
                        prefill_tps,
                        busy,
                        waiting + status.queued,
                        waiting_tokens,
                        reading,
                        ahead,
                        (output_tokens or expected_tokens) / decode_tps,
                        now - (lane.placed_at if lane.placed_at > since else since),
                        lane.warm.warm_tokens(prefix, prompt_tokens) if prefix else 0,
                        lane.rtt_s,
                        readiness,
                        lane.own,
                    ),
                )
            )
        return candidates

    @staticmethod
    def _best_known(lanes: dict[str, Lane], name: Literal["prefill", "decode"]) -> float:
        """What is not measured yet counts as the best of what is: so the node is tried soon."""
        if name == "prefill":
            return max(x.prefill.tps or 0.0 for x in lanes.values()) or PRIOR_PREFILL_TPS
        return max(x.decode.tps or 0.0 for x in lanes.values()) or PRIOR_DECODE_TPS

    def _back_by(self, demand: Demand) -> float:
        """Until when it makes sense to wait for a node that was there a moment ago."""
        lanes = self._lanes.get(demand.model, {})
        return max(
            (
                lane.left_at + RETURN_S
                for node, lane in lanes.items()
                if lane.left_at is not None and serves(demand, lane.ledger.status, node)
            ),
            default=-math.inf,
        )

    def _place(self, ticket: Ticket, decision: Decision, now: float) -> None:
        demand = ticket.demand
        lane = self._lanes[demand.model][decision.node or ""]
        warm = lane.warm.warm_tokens(demand.prefix, demand.prompt_tokens)
        claim = lane.ledger.claim(demand.prompt_tokens - warm, demand.expected_output_tokens, now)
        lane.warm.remember(demand.prefix, demand.prompt_tokens)
        lane.cooldown.sent(now)
        lane.placed_at = now
        ticket.entry = None
        ticket.placement = Placement(ticket, lane, claim, decision, now - ticket.at, warm)
        ticket.on_change()

    def _plan(
        self, model: str, now: float, *, lane: Lane | None = None, newcomer: Ticket | None = None
    ) -> None:
        """Place those that wait for `model`, in fair order, as far as slots go. Where only one
        thing changed, only that is looked at: the `lane` that something came free on, or the
        `newcomer`; what the others declined they decline until the next tick."""
        queue = self._queues.get(model)
        if queue is None:
            return
        looked_at = self._lanes.get(model, {}).values() if lane is None else (lane,)
        able: list[Lane] = []
        for each in looked_at:
            if each.ledger.suspect:
                each.ledger.heal(now)
            if each.open(now):
                able.append(each)
        if able:
            self._place_waiting(queue, able, now, newcomer)
        self._tidy(model)
        if self._queues and self._tick_at is None:
            self._tick_at = now + TICK_S

    def _place_waiting(
        self, queue: FairQueue[Ticket], able: list[Lane], now: float, newcomer: Ticket | None
    ) -> None:
        lines: dict[str, tuple[int, float]] = {}
        decisions = 0
        for entry in queue:
            ticket = entry.item
            if (newcomer is not None and ticket is not newcomer) or not any(
                serves(ticket.demand, lane.ledger.status, lane.node) for lane in able
            ):
                _line_up(lines, ticket)
                continue
            decisions += 1
            decision = self._decide(ticket, now, lines)
            if decision.fault is not None:
                if decision.fault is not Fault.NO_NODE:  # that may end while there is time
                    queue.discard(entry)
                    ticket.refuse(decision.error())
            elif decision.wait:
                ticket.waits_for = decision.node or ""
                _line_up(lines, ticket)
            else:
                queue.take(entry)
                self._place(ticket, decision, now)
                able = [lane for lane in able if lane.open(now)]
            if not able or ticket is newcomer or decisions == PLAN_DEPTH:
                return

    def _tidy(self, model: str) -> None:
        if not self._queues.get(model):
            self._queues.pop(model, None)
        if not self._queues:
            self._tick_at = None

    def _learn(self, placement: Placement, now: float, result: Result, tokens: Tokens) -> None:
        lane, demand = placement.lane, placement.demand
        cached = tokens.cached if tokens.cached is not None else placement.warm_tokens
        fresh = tokens.prompt - cached
        if tokens.cached is not None:
            lane.warm.correct(placement.warm_tokens, tokens.cached)
        if result is Result.SERVED and tokens.completion:
            self._lengths.add(demand.model, placement.key_id, tokens.completion)
        if placement.first_at is None:
            return
        if fresh >= LEAST_SAMPLE_TOKENS:
            lane.prefill.add(fresh, placement.read_s)
        if tokens.completion >= LEAST_SAMPLE_ANSWER:
            lane.decode.add(tokens.completion - 1, now - placement.first_at)

    def _forget(self, model: str, node: str) -> None:
        del self._lanes[model][node]
        if not self._lanes[model]:
            del self._lanes[model]
            self._usual.pop(model, None)


def _line_up(lines: dict[str, tuple[int, float]], ticket: Ticket) -> None:
    """Those behind `ticket` must see that it waits for its node before them."""
    count, tokens = lines.get(ticket.waits_for, _NO_LINE)
    lines[ticket.waits_for] = (count + 1, tokens + ticket.demand.prompt_tokens)


def _waited_too_long(ticket: Ticket) -> NodeUnavailable:
    if not ticket.waits_for:
        return NodeUnavailable(
            f"The nodes that serve '{ticket.demand.model}' were lost, and none of them came back.",
            retry_after_s=RETRY_AFTER_S,
        )
    return NodeUnavailable(
        f"No slot for '{ticket.demand.model}' came free within {ticket.until - ticket.at:.0f} s.",
        Fault.OVERLOADED,
        retry_after_s=RETRY_AFTER_S,
    )
