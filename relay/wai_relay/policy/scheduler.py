"""Who goes where, and who waits: the relay's one place that puts requests on nodes.

It keeps what is known of every model on every node (`pool`, `lanes`), lets `planning` decide about
each request, and lets wait what has no slot yet (`fair_queue`). A waiting request is bound to no
node.

Pure state machine: no I/O, `now` is monotonic seconds. `dispatch` is its shell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, assert_never

from wai_protocol.errors import Fault, NodeUnavailable
from wai_protocol.status import ModelStatus, NodeStatus

from .concurrency import FIRST_LIMIT
from .demands import Demand, Readiness
from .fair_queue import MAX_WAITING, Entry, FairQueue, full
from .lanes import Lane
from .learning import learn
from .planning import PLAN_LOOKS, TICK_S, Planner
from .pool import Pool
from .rates import OutputLengths
from .scoring import FIRST_TOKEN_WEIGHT
from .selection import RETRY_AFTER_S, Decision
from .tickets import Placement, Result, Ticket, Tokens

__all__ = ["Placement", "Result", "Scheduler", "Ticket", "Tokens"]

# How long a request may wait for a slot. Callers' own limits are 60 s and more; what waits longer
# than half of that on a full fleet is better tried elsewhere while there is time.
MAX_WAIT_S: Final = 30.0
# Where the model is loaded first, those in line have as much more patience, but no more than this:
# half of what a node lets a request wait for a load.
MAX_LOADING_WAIT_S: Final = 300.0
LOADED_GRACE_S: Final = 10.0  # for its turn, once the model was loaded
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


class Scheduler:
    """Places requests on the nodes it is told of. Belongs to one loop."""

    def __init__(
        self,
        *,
        queue_limit: int = MAX_WAITING,
        first_token_weight: float = FIRST_TOKEN_WEIGHT,
        pass_s: float = PASS_S,
    ) -> None:
        self._pass_s = pass_s
        self._queue_limit = queue_limit
        self._lengths = OutputLengths()
        self._planner = Planner(first_token_weight)
        self._pools = self._planner.pools  # by model

    @property
    def first_token_weight(self) -> float:
        """What a second until the first token counts beside one of generating."""
        return self._planner.first_token_weight

    @first_token_weight.setter
    def first_token_weight(self, weight: float) -> None:
        self._planner.first_token_weight = weight

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
        for left in [p for m, p in self._pools.items() if node in p.lanes and m not in models]:
            self._forget(left, node)
        for model_id, model in models.items():
            pool = self._pools.get(model_id)
            if pool is None:
                pool = self._pools[model_id] = Pool(model_id)
            lane = pool.lanes.get(node)
            known = lane is not None
            if lane is None:
                lane = pool.lanes[node] = Lane(node, model, own=own)
            if readiness is Readiness.READY:
                lane.left_at = None
            elif readiness is Readiness.AWAY and lane.readiness is Readiness.READY and known:
                lane.left_at = now
            free = lane.free if known and lane.open(now) else 0
            changed = not known or readiness is not lane.readiness
            lane.readiness = readiness
            lane.rtt_s = rtt_s
            _report(lane, model, now)
            pool.note_speeds(lane)
            if changed or lane.free > free:
                self._planner.plan(pool, now)

    def remove(self, node: str) -> None:
        """A node is gone for good."""
        for pool in [p for p in self._pools.values() if node in p.lanes]:
            self._forget(pool, node)

    def models(self) -> Iterable[str]:
        """The models that some node serves."""
        return [model for model, pool in self._pools.items() if pool.lanes]

    def nodes(self, model: str) -> Iterable[str]:
        """The nodes that serve `model`."""
        pool = self._pools.get(model)
        return pool.lanes.keys() if pool is not None else ()

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot."""
        return sum(
            lane.ledger.claims for pool in self._pools.values() for lane in pool.lanes.values()
        )

    @property
    def decisions(self) -> int:
        """How often a request was decided about; what it costs beside a long line is seen by it."""
        return self._planner.turn

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
        ticket = Ticket(demand.expecting(expected), key_id, now, now + max_wait_s)
        planner, pool = self._planner, self._pools.get(demand.model)
        if pool is None:  # callers ask for models of any name
            pool = Pool(demand.model)
        decision = planner.decide(pool, ticket, now, {})
        back_by = pool.back_by(demand) if may_wait and decision.fault is Fault.NO_NODE else now
        if decision.fault is not None and back_by <= now:
            raise decision.error()
        short = demand.prompt_tokens < SHORT * pool.usual_tokens(demand.prompt_tokens)
        if decision.fault is not None:
            ticket.until = min(ticket.until, back_by)
        elif (
            not may_wait
            or (pool.queue is None and not decision.wait)
            or (self._is_full(pool) and pool.is_guess(decision))
        ):
            planner.place(pool, ticket, decision, now)
            return ticket
        self._line_up(pool, ticket, decision, short=short, priority=priority)
        planner.plan(pool, now, newcomer=ticket)  # those before it keep what they wait for
        return ticket

    def _is_full(self, pool: Pool) -> bool:
        return (0 if pool.queue is None else len(pool.queue)) >= self._queue_limit

    def _line_up(
        self, pool: Pool, ticket: Ticket, decision: Decision, *, short: bool, priority: int
    ) -> None:
        """Let `ticket` wait for what `decision` found best. Raises `NodeUnavailable` if the line is
        full."""
        demand, key_id = ticket.demand, ticket.key_id
        ticket.waits_for = decision.node or ""
        queue = pool.queue
        if queue is None:
            queue = pool.queue = FairQueue(self._queue_limit)
            self._planner.waiting[pool.model] = pool
        lets_pass_s = 0.0
        if not short:
            lets_pass_s = self._pass_s - PASS_SHARE_OF_WAITING * queue.waiting_takes(key_id)
        ticket.entry, displaced = queue.push(
            key_id,
            ticket,
            work=demand.prompt_tokens + demand.expected_output_tokens,
            takes=pool.takes_s(decision),
            lets_pass=max(0.0, lets_pass_s),
            priority=priority,
        )
        if displaced is not None:
            displaced.item.refuse(full())

    def cancel(self, ticket: Ticket, now: float) -> None:
        """Nobody wants it any more. A slot that it had is free again. Idempotent."""
        pool = self._pools.get(ticket.demand.model)
        if ticket.entry is not None and pool is not None and pool.queue is not None:
            pool.queue.discard(ticket.entry)
            self._planner.tidy(pool)
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
        self._plan(placement, now)

    def finish(
        self, placement: Placement, now: float, result: Result, tokens: Tokens | None = None
    ) -> None:
        """The request is over: its slot is free, and what it showed is learned. Idempotent."""
        lane, pool = placement.lane, self._pools.get(placement.demand.model)
        if placement.over:
            return
        placement.over = True
        placement.took_s = now - placement.placed_at
        if lane.learns_limit and result is not Result.FULL:
            if placement.demand.generates:
                lane.concurrency.ended(now, placement.beginning)
            lane.learn_limit(now)
        if tokens is not None and learn(placement, now, result, tokens, self._lengths) and pool:
            pool.note_speeds(lane)
        lane.ledger.release(placement.claim, now)
        match result:
            case Result.SERVED:
                lane.cooldown.succeeded()
            case Result.REFUSED:
                lane.cooldown.refused(now)
            case Result.FAILED:
                lane.cooldown.failed(now, pool.placed if pool else 0)
            case Result.FULL:
                lane.ledger.filled()
            case Result.CANCELLED | Result.SUSPECT:
                pass
            case _:
                assert_never(result)
        self._plan(placement, now)

    def blame(self, placement: Placement, now: float) -> None:
        """A placement that ended as `SUSPECT` failed by its node's fault: another node served the
        same request. Where it failed everywhere, the request is at fault and nobody is blamed: see
        `acquit`."""
        pool = self._pools.get(placement.demand.model)
        placed = pool.placed if pool else 0
        placement.lane.cooldown.blamed(now, placed, placement.took_s)

    def acquit(self, placement: Placement) -> None:
        """... and here nobody did, or nobody else was tried."""
        placement.lane.cooldown.acquitted()

    # -- time
    def next_deadline(self) -> float | None:
        """When to call `handle_timeout`; None while nothing waits."""
        return self._planner.tick_at

    def handle_timeout(self, now: float) -> None:
        """Refuse those that waited too long, and look again at the others."""
        planner = self._planner
        if planner.tick_at is None or now < planner.tick_at:
            return
        planner.tick_at = None
        stop_at = planner.looks + PLAN_LOOKS
        # Those whose turn did not come in the last tick are the first in this one.
        for pool in sorted(planner.waiting.values(), key=lambda pool: pool.round):
            for entry in pool.queue or ():
                ticket = entry.item
                if now >= ticket.until:
                    self._end_wait(pool, entry, now)
                elif now >= ticket.hurry_at:
                    ticket.hurry_at = math.inf
                    if pool.queue is not None:
                        pool.queue.hurry(entry)
            if planner.looks < stop_at:
                planner.plan(pool, now, stop_at=stop_at)
        if planner.waiting and planner.tick_at is None:
            planner.tick_at = now + TICK_S

    # -- inside
    def _end_wait(self, pool: Pool, entry: Entry[Ticket], now: float) -> None:
        """It waited as long as it may, unless the model is being loaded for it."""
        ticket = entry.item
        decision = self._planner.decide(pool, ticket, now, {})
        lane = pool.lanes.get(decision.node or "")
        if lane is not None and lane.load_s and now < ticket.at + MAX_LOADING_WAIT_S:
            ticket.until = now + lane.load_s + LOADED_GRACE_S
            return
        if pool.queue is not None:
            pool.queue.discard(entry)
        if pool.is_guess(decision):
            self._planner.place(pool, ticket, decision, now)
        else:
            ticket.refuse(_waited_too_long(ticket))

    def _plan(self, placement: Placement, now: float) -> None:
        """Something came free on the node of `placement`."""
        pool, lane = self._pools.get(placement.demand.model), placement.lane
        if pool is not None:
            self._planner.plan(pool, now, lane=lane)
        elif lane.learns_limit:
            lane.learn_limit(now)

    def _forget(self, pool: Pool, node: str) -> None:
        pool.forget(node)
        self._planner.tidy(pool)


def _report(lane: Lane, model: ModelStatus, now: float) -> None:
    """Note what a node says of its model."""
    old = lane.ledger.status
    lane.ledger.report(model, now)
    lane.load_s = model.load_s
    if model.slots_total:
        lane.pace.slots = model.slots_total
    if model.prefill_tps != old.prefill_tps or lane.prefill.tps is None:
        lane.prefill.add_reported(model.prefill_tps)
    if model.decode_tps != old.decode_tps or lane.decode.tps is None:
        lane.decode.add_reported(model.decode_tps)
        lane.pace.add_reported(model.decode_tps)
    if model.context_tokens:
        lane.warm.resize((model.slots_total or FIRST_LIMIT) * model.context_tokens)


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
