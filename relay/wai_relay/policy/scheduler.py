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
from collections.abc import Collection, Iterable
from typing import Final, assert_never

from wai_protocol.errors import Fault, NodeUnavailable
from wai_protocol.status import NodeStatus

from .candidates import NO_LINE, Lines, candidates
from .concurrency import FIRST_LIMIT
from .demands import Demand, Readiness, serves
from .fair_queue import MAX_WAITING, Entry, FairQueue, full
from .lanes import MANY, BestKnown, Lane, Shortlist
from .rates import OutputLengths
from .scoring import FIRST_TOKEN_WEIGHT
from .selection import RETRY_AFTER_S, Decision, select
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
# Nodes looked at in one go: to look at one takes 4 to 6 µs, and nothing else runs meanwhile. What
# is left is looked at in the next tick. One decision may look at all nodes beyond this.
PLAN_LOOKS: Final = 250
# To see whether a node could be given anything takes this share of a look.
GLANCE: Final = 1 / 4
# A reading shorter than this says more about the way there than about the node's speed.
LEAST_SAMPLE_TOKENS: Final = 64
# Fewer tokens than this arrive together, and seem to take no time.
LEAST_SAMPLE_ANSWER: Final = 8
# A question does not wait behind a book: of one key's requests, those whose prompt is shorter than
# this share of the usual one are short, and pass the others...
SHORT: Final = 0.45
# ... as long as those, first come, first served, would soon have their turn: one lets so many pass
# that come after it as are served in this time, less what those need twice that wait before it. So
# the short ones are quick while the line is short, and who comes when it is long waits as he would
# without that: those are the waits by which a line is judged. How this value was chosen is told in
# docs/routing.md.
PASS_S: Final = 40.0
PASS_SHARE_OF_WAITING: Final = 2.0
# The best speeds of a model's nodes are computed anew after so many decisions, and when better ones
# were measured.
KNOWN_FOR_TURNS: Final = 256
# The usual length of a prompt follows some fifty requests.
USUAL_FADE: Final = 0.02


class Scheduler:
    """Places requests on the nodes it is told of. Belongs to one loop."""

    def __init__(
        self,
        *,
        queue_limit: int = MAX_WAITING,
        first_token_weight: float = FIRST_TOKEN_WEIGHT,
        pass_s: float = PASS_S,
    ) -> None:
        self.first_token_weight = first_token_weight
        self._pass_s = pass_s
        self._lanes: dict[str, dict[str, Lane]] = {}  # model -> node -> lane
        self._queues: dict[str, FairQueue[Ticket]] = {}  # model -> those that wait
        self._queue_limit = queue_limit
        self._lengths = OutputLengths()
        self._usual: dict[str, float] = {}  # model -> length of a prompt, a mean that fades
        self._placed: dict[str, int] = {}  # model -> requests placed
        self._rounds: dict[str, int] = {}  # model -> the round of ticks in which it is looked at
        self._known: dict[str, BestKnown] = {}  # model -> the best speeds of any node
        self._turn = 0  # decisions made
        self._looks = 0.0  # nodes looked at for them
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
            if model.slots_total:
                lane.pace.slots = model.slots_total
            if model.prefill_tps != old.prefill_tps or lane.prefill.tps is None:
                lane.prefill.add_reported(model.prefill_tps)
            if model.decode_tps != old.decode_tps or lane.decode.tps is None:
                lane.decode.add_reported(model.decode_tps)
                lane.pace.add_reported(model.decode_tps)
            self._note_speeds(model_id, lane)
            if model.context_tokens:
                lane.warm.resize((model.slots_total or FIRST_LIMIT) * model.context_tokens)
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
        expected = 0.0
        if demand.generates:
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
        if decision.fault is not None:
            ticket.until = min(ticket.until, back_by)
        elif (
            not may_wait
            or (demand.model not in self._queues and not decision.wait)
            or (self._is_full(demand.model) and self._is_guess(demand.model, decision))
        ):
            self._place(ticket, decision, now)
            return ticket
        self._line_up(
            ticket, decision, short=demand.prompt_tokens < SHORT * usual, priority=priority
        )
        self._plan(demand.model, now, newcomer=ticket)  # those before it keep what they wait for
        return ticket

    def _is_full(self, model: str) -> bool:
        return len(self._queues.get(model, ())) >= self._queue_limit

    def _is_guess(self, model: str, decision: Decision) -> bool:
        """Return whether only our guess of its slots speaks against the chosen node.

        Where an upstream does not tell its slots, nobody is refused for that guess: when our queue
        is full or has no more patience, the request goes on to the upstream's own queue.
        """
        lane = self._lanes.get(model, {}).get(decision.node or "")
        return decision.fault is None and lane is not None and lane.learns_limit

    def _line_up(self, ticket: Ticket, decision: Decision, *, short: bool, priority: int) -> None:
        """Let `ticket` wait for what `decision` found best. Raises `NodeUnavailable` if the line is
        full."""
        demand, key_id = ticket.demand, ticket.key_id
        ticket.waits_for = decision.node or ""
        queue = self._queues.get(demand.model)
        if queue is None:
            queue = self._queues[demand.model] = FairQueue(self._queue_limit)
        takes_s = self._takes_s(demand.model, decision)
        lets_pass_s = 0.0
        if not short:
            lets_pass_s = self._pass_s - PASS_SHARE_OF_WAITING * queue.waiting_takes(key_id)
        ticket.entry, displaced = queue.push(
            key_id,
            ticket,
            work=demand.prompt_tokens + demand.expected_output_tokens,
            takes=takes_s,
            lets_pass=max(0.0, lets_pass_s),
            priority=priority,
        )
        if displaced is not None:
            displaced.item.refuse(full())

    def _takes_s(self, model: str, decision: Decision) -> float:
        """How long serving a request keeps the others waiting: its time on the node that looks
        best, as a share of all slots."""
        lanes = self._lanes.get(model, {}).values()
        slots = sum(lane.slots for lane in lanes if lane.own and lane.readiness is Readiness.READY)
        for score in decision.scores:
            if score.node == decision.node:
                return (score.prefill_s + score.generation_s) / max(slots, 1)
        return 0.0

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
        lane = placement.lane
        since_end_s = now - lane.ledger.ended_at
        took_s = lane.ledger.first_token(placement.claim, now)
        if took_s is None:
            return
        placement.first_at = now
        placement.read_s = took_s - lane.rtt_s
        if lane.learns_limit:
            placement.beginning = lane.beginning(placement.claim, since_end_s, now)
        self._plan(placement.demand.model, now, lane=lane)

    def finish(
        self, placement: Placement, now: float, result: Result, tokens: Tokens | None = None
    ) -> None:
        """The request is over: its slot is free, and what it showed is learned. Idempotent."""
        lane, model = placement.lane, placement.demand.model
        if placement.over:
            return
        placement.over = True
        placement.took_s = now - placement.placed_at
        if lane.learns_limit:
            if placement.demand.generates:
                lane.concurrency.ended(now, placement.beginning)
            lane.learn_limit(now)
        if tokens is not None:
            self._learn(placement, now, result, tokens)
        lane.ledger.release(placement.claim, now)
        match result:
            case Result.SERVED | Result.REFUSED:
                lane.cooldown.succeeded()
            case Result.FAILED:
                lane.cooldown.failed(now, self._placed.get(model, 0))
            case Result.CANCELLED | Result.SUSPECT:
                pass
            case _:
                assert_never(result)
        self._plan(model, now, lane=lane)

    def blame(self, placement: Placement, now: float) -> None:
        """A placement that ended as `SUSPECT` failed by its node's fault: another node served the
        same request. Where it failed everywhere, the request is at fault and nobody is blamed."""
        placed = self._placed.get(placement.demand.model, 0)
        placement.lane.cooldown.blamed(now, placed, placement.took_s)

    # -- time
    def next_deadline(self) -> float | None:
        """When to call `handle_timeout`; None while nothing waits."""
        return self._tick_at

    def handle_timeout(self, now: float) -> None:
        """Refuse those that waited too long, and look again at the others."""
        if self._tick_at is None or now < self._tick_at:
            return
        self._tick_at = None
        stop_at = self._looks + PLAN_LOOKS
        # Those whose turn did not come in the last tick are the first in this one.
        for model, queue in sorted(
            self._queues.items(), key=lambda pair: self._rounds.get(pair[0], 0)
        ):
            for entry in queue:
                ticket = entry.item
                if now >= ticket.until:
                    queue.discard(entry)
                    decision = self._decide(ticket, now, {})
                    if self._is_guess(model, decision):
                        self._place(ticket, decision, now)
                    else:
                        ticket.refuse(_waited_too_long(ticket))
                elif now >= ticket.hurry_at:
                    ticket.hurry_at = math.inf
                    queue.hurry(entry)
            if self._looks < stop_at:
                self._plan(model, now, stop_at=stop_at)
        if self._queues and self._tick_at is None:
            self._tick_at = now + TICK_S

    # -- inside
    def _decide(self, ticket: Ticket, now: float, lines: Lines) -> Decision:
        """Ask selection. `lines`: how many, and how many prompt tokens, wait for each node
        before. Of many nodes only those are asked about that can matter."""
        self._turn += 1
        demand = ticket.demand
        lanes = self._lanes.get(demand.model, {})
        every = lanes.values()
        known, placed = self._best_known(demand.model), self._placed.get(demand.model, 0)
        shortlist: Shortlist | None = None
        asked: Collection[Lane] = every
        generation_weight = 1 / self.first_token_weight
        if len(lanes) > MANY:
            shortlist = Shortlist(demand, every, self._turn, known, generation_weight)
            asked = shortlist.first
        while True:
            self._looks += len(asked)
            decision = select(
                demand,
                candidates(ticket, asked, known, placed, now, lines),
                waited_s=now - ticket.at,
                turn=self._turn,
                generation_weight=generation_weight,
            )
            more = shortlist.more(decision) if shortlist is not None else None
            if more is None:
                return decision.shortened(MANY)
            asked, shortlist = more, None

    def _best_known(self, model: str) -> BestKnown:
        known = self._known.get(model)
        if known is None or self._turn % KNOWN_FOR_TURNS == 0:
            lanes = self._lanes.get(model, {}).values()
            known = BestKnown.of(lanes)
            if lanes:  # callers ask for models of any name
                self._known[model] = known
        return known

    def _note_speeds(self, model: str, lane: Lane) -> None:
        """A node's speeds were measured: they may be the best of all now."""
        known = self._known.get(model)
        if known is not None and known.is_worse_than(lane):
            del self._known[model]

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
        claim = lane.claim(
            demand.prompt_tokens - warm, demand.expected_output_tokens, now, streams=demand.streams
        )
        lane.warm.remember(demand.prefix, demand.prompt_tokens)
        placed = self._placed.get(demand.model, 0)
        lane.cooldown.sent(now, placed)
        self._placed[demand.model] = placed + 1
        lane.placed_at = now
        ticket.entry = None
        ticket.placement = Placement(ticket, lane, claim, decision, now, warm)
        ticket.on_change()

    def _plan(
        self,
        model: str,
        now: float,
        *,
        lane: Lane | None = None,
        newcomer: Ticket | None = None,
        stop_at: float | None = None,
    ) -> None:
        """Place those that wait for `model`, in fair order, as far as slots go. Where only one
        thing changed, only that is looked at: the `lane` that something came free on, or the
        `newcomer`; what the others declined they decline until the next tick. `stop_at`: the
        number of looks after which the rest is left to the next tick."""
        queue = self._queues.get(model)
        if queue is None:
            if lane is not None:
                lane.learn_limit(now)
            return
        looked_at: Collection[Lane] = (lane,) if lane else self._lanes.get(model, {}).values()
        able: list[Lane] = []
        for each in looked_at:
            if each.ledger.suspect:
                each.ledger.heal(now)
            if each.learns_limit:
                each.learn_limit(now)
            if each.open(now):
                able.append(each)
        self._looks += GLANCE * len(looked_at)
        if not able and stop_at is not None:
            self._rounds[model] = self._rounds.get(model, 0) + 1
        if able:
            if newcomer is not None:
                self._place_newcomer(queue, newcomer, able, now)
            else:
                ticked = stop_at is not None
                stop_at = self._looks + PLAN_LOOKS if stop_at is None else stop_at
                self._place_waiting(queue, able, now, stop_at, model if ticked else None)
        self._tidy(model)
        if self._queues and self._tick_at is None:
            self._tick_at = now + TICK_S

    def _place_newcomer(
        self, queue: FairQueue[Ticket], newcomer: Ticket, able: list[Lane], now: float
    ) -> None:
        if not any(serves(newcomer.demand, lane.ledger.status, lane.node) for lane in able):
            return
        lines: Lines = {}
        for entry in queue:
            if entry.item is newcomer:
                self._offer(queue, entry, now, lines)
                return
            _stand_before(lines, entry.item)

    def _place_waiting(
        self,
        queue: FairQueue[Ticket],
        able: list[Lane],
        now: float,
        stop_at: float,
        ticked: str | None,
    ) -> None:
        """Offer what is free to those that wait. `ticked`: the model, where all that wait are
        looked at; those whose turn came in this round of ticks already are passed over."""
        current = self._rounds.get(ticked or "", 0)
        lines: Lines = {}
        considered = 0
        for entry in queue:
            ticket = entry.item
            if not any(serves(ticket.demand, lane.ledger.status, lane.node) for lane in able):
                _stand_before(lines, ticket)
                continue
            considered += 1
            if ticked is not None and ticket.round > current:
                _stand_before(lines, ticket)
            elif self._looks >= stop_at:
                return  # the round goes on in the next tick
            else:
                ticket.round = current + 1
                if self._offer(queue, entry, now, lines):
                    able = [lane for lane in able if lane.open(now)]
            if not able or considered == PLAN_DEPTH:
                break
        if ticked is not None:
            self._rounds[ticked] = current + 1

    def _offer(
        self, queue: FairQueue[Ticket], entry: Entry[Ticket], now: float, lines: Lines
    ) -> bool:
        """Decide about one that waits. Whether it was placed."""
        ticket = entry.item
        decision = self._decide(ticket, now, lines)
        if decision.fault is not None:
            if decision.fault is not Fault.NO_NODE:  # that may end while there is time
                queue.discard(entry)
                ticket.refuse(decision.error())
            return False
        if decision.wait:
            ticket.waits_for = decision.node or ""
            _stand_before(lines, ticket)
            return False
        queue.take(entry)
        self._place(ticket, decision, now)
        return True

    def _tidy(self, model: str) -> None:
        if not self._queues.get(model):
            self._queues.pop(model, None)
            self._rounds.pop(model, None)
        if not self._queues:
            self._tick_at = None

    def _learn(self, placement: Placement, now: float, result: Result, tokens: Tokens) -> None:
        """What a request that ends now has shown. Its claim is still held."""
        lane, demand = placement.lane, placement.demand
        cached = tokens.cached if tokens.cached is not None else placement.warm_tokens
        fresh = tokens.prompt - cached
        if tokens.cached is not None:
            lane.warm.correct(placement.warm_tokens, tokens.cached)
        if result is Result.SERVED and tokens.completion:
            self._lengths.add(demand.model, placement.key_id, tokens.completion)
        if placement.first_at is None:
            if result is Result.SERVED:
                self._learn_whole(placement, now, fresh, tokens)
            return
        beginning = placement.beginning
        if fresh >= LEAST_SAMPLE_TOKENS and (beginning is None or beginning.shows_reading):
            lane.prefill.add(fresh, placement.read_s)
        if tokens.completion >= LEAST_SAMPLE_ANSWER:
            took_s = now - placement.first_at
            lane.decode.add(tokens.completion - 1, took_s)
            others = lane.ledger.together(placement.claim, now) - 1.0
            lane.pace.add(others, took_s / (tokens.completion - 1))
        self._note_speeds(demand.model, lane)

    def _learn_whole(self, placement: Placement, now: float, fresh: float, tokens: Tokens) -> None:
        """The same for an answer that came in one piece: it shows no first token."""
        lane = placement.lane
        if not placement.demand.generates and fresh >= LEAST_SAMPLE_TOKENS:
            took_s = lane.ledger.first_token(placement.claim, now)
            if took_s is not None:
                lane.prefill.add(fresh, took_s - lane.rtt_s)
                self._note_speeds(placement.demand.model, lane)
        if lane.learns_limit:
            together = (placement.placed_beside + lane.ledger.busy) / 2
            took_s = now - placement.placed_at
            work = tokens.completion if placement.demand.generates else fresh
            lane.concurrency.ended_whole(now, together=together, took_s=took_s, tokens=work)

    def _forget(self, model: str, node: str) -> None:
        del self._lanes[model][node]
        if not self._lanes[model]:
            del self._lanes[model]
            self._usual.pop(model, None)
            self._placed.pop(model, None)
            self._known.pop(model, None)


def _stand_before(lines: Lines, ticket: Ticket) -> None:
    """Those behind `ticket` must see that it waits for its node before them."""
    count, tokens = lines.get(ticket.waits_for, NO_LINE)
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
