"""Which of those that wait gets what is free now: the scheduler's decisions. Pure.

Whenever a slot comes free or a node changes, those that wait are looked at again, in fair order,
and each that gets nothing reserves a place in the line of the node it waits for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from wai_protocol.errors import Fault

from .candidates import NO_LINE, Lines, candidates
from .demands import serves
from .fair_queue import Entry, FairQueue
from .lanes import MANY, Lane, Shortlist
from .pool import Pool
from .selection import Decision, select
from .tickets import Placement, Ticket

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


class Planner:
    """Decides about requests and places them. `pools` by model, `waiting` those where something
    waits; `turn`: decisions made, `looks`: nodes looked at for them; `tick_at`: when all that wait
    are to be looked at."""

    __slots__ = ("first_token_weight", "looks", "pools", "tick_at", "turn", "waiting")

    def __init__(self, first_token_weight: float) -> None:
        self.first_token_weight = first_token_weight
        self.pools: dict[str, Pool] = {}
        self.waiting: dict[str, Pool] = {}
        self.turn = 0
        self.looks = 0.0
        self.tick_at: float | None = None

    def decide(self, pool: Pool, ticket: Ticket, now: float, lines: Lines) -> Decision:
        """Ask selection. `lines`: how many, and how many prompt tokens, wait for each node
        before. Of many nodes only those are asked about that can matter."""
        self.turn += 1
        demand = ticket.demand
        lanes = pool.lanes
        every = lanes.values()
        known, placed = pool.best_known(self.turn), pool.placed
        shortlist: Shortlist | None = None
        asked: Collection[Lane] = every
        generation_weight = 1 / self.first_token_weight
        if len(lanes) > MANY:
            shortlist = Shortlist(demand, every, self.turn, known, generation_weight)
            asked = shortlist.first
        while True:
            self.looks += len(asked)
            decision = select(
                demand,
                candidates(ticket, asked, known, placed, now, lines),
                waited_s=now - ticket.at,
                turn=self.turn,
                generation_weight=generation_weight,
            )
            more = shortlist.more(decision) if shortlist is not None else None
            if more is None:
                return decision.shortened(MANY)
            asked, shortlist = more, None

    def place(self, pool: Pool, ticket: Ticket, decision: Decision, now: float) -> None:
        """Give `ticket` the slot that was decided for it."""
        demand = ticket.demand
        lane = pool.lanes[decision.node or ""]
        warm = lane.warm.warm_tokens(demand.prefix, demand.prompt_tokens)
        claim = lane.claim(
            demand.prompt_tokens - warm, demand.expected_output_tokens, now, streams=demand.streams
        )
        lane.warm.remember(demand.prefix, demand.prompt_tokens)
        lane.cooldown.sent(now, pool.placed)
        pool.placed += 1
        lane.placed_at = now
        ticket.entry = None
        ticket.placement = Placement(ticket, lane, claim, decision, now, warm)
        ticket.on_change()

    def plan(
        self,
        pool: Pool,
        now: float,
        *,
        lane: Lane | None = None,
        newcomer: Ticket | None = None,
        stop_at: float | None = None,
    ) -> None:
        """Place those that wait, in fair order, as far as slots go. Where only one thing changed,
        only that is looked at: the `lane` that something came free on, or the `newcomer`; what the
        others declined they decline until the next tick. `stop_at`: the number of looks after which
        the rest is left to the next tick."""
        queue = pool.queue
        if queue is None:
            if lane is not None:
                lane.learn_limit(now)
            return
        looked_at: Collection[Lane] = (lane,) if lane else pool.lanes.values()
        able: list[Lane] = []
        for each in looked_at:
            if each.ledger.suspect:
                each.ledger.heal(now)
            if each.learns_limit:
                each.learn_limit(now)
            if each.open(now):
                able.append(each)
        self.looks += GLANCE * len(looked_at)
        if not able and stop_at is not None:
            pool.round += 1
        if able:
            if newcomer is not None:
                self._place_newcomer(pool, queue, newcomer, able, now)
            else:
                ticked = stop_at is not None
                stop_at = self.looks + PLAN_LOOKS if stop_at is None else stop_at
                self._place_waiting(pool, queue, able, now, stop_at, ticked=ticked)
        self.tidy(pool)
        if self.waiting and self.tick_at is None:
            self.tick_at = now + TICK_S

    def _place_newcomer(
        self, pool: Pool, queue: FairQueue[Ticket], newcomer: Ticket, able: list[Lane], now: float
    ) -> None:
        if not any(serves(newcomer.demand, lane.ledger.status, lane.node) for lane in able):
            return
        lines: Lines = {}
        for entry in queue:
            if entry.item is newcomer:
                self._offer(pool, queue, entry, now, lines)
                return
            _stand_before(lines, entry.item)

    def _place_waiting(
        self,
        pool: Pool,
        queue: FairQueue[Ticket],
        able: list[Lane],
        now: float,
        stop_at: float,
        *,
        ticked: bool,
    ) -> None:
        """Offer what is free to those that wait. `ticked`: all that wait are looked at; those whose
        turn came in this round of ticks already are passed over."""
        current = pool.round if ticked else 0  # else it is no turn in a round
        lines: Lines = {}
        considered = 0
        for entry in queue:
            ticket = entry.item
            if not any(serves(ticket.demand, lane.ledger.status, lane.node) for lane in able):
                _stand_before(lines, ticket)
                continue
            considered += 1
            if ticked and ticket.round > current:
                _stand_before(lines, ticket)
            elif self.looks >= stop_at:
                return  # the round goes on in the next tick
            else:
                ticket.round = current + 1
                if self._offer(pool, queue, entry, now, lines):
                    able = [lane for lane in able if lane.open(now)]
            if not able or considered == PLAN_DEPTH:
                break
        if ticked:
            pool.round = current + 1

    def _offer(
        self, pool: Pool, queue: FairQueue[Ticket], entry: Entry[Ticket], now: float, lines: Lines
    ) -> bool:
        """Decide about one that waits. Whether it was placed."""
        ticket = entry.item
        decision = self.decide(pool, ticket, now, lines)
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
        self.place(pool, ticket, decision, now)
        return True

    def tidy(self, pool: Pool) -> None:
        """Forget a queue that is empty, and a model that nobody serves or waits for."""
        if not pool.queue:
            pool.queue = None
            pool.round = 0
            self.waiting.pop(pool.model, None)
            if not pool.lanes:
                self.pools.pop(pool.model, None)
        if not self.waiting:
            self.tick_at = None


def _stand_before(lines: Lines, ticket: Ticket) -> None:
    """Those behind `ticket` must see that it waits for its node before them."""
    count, tokens = lines.get(ticket.waits_for, NO_LINE)
    lines[ticket.waits_for] = (count + 1, tokens + ticket.demand.prompt_tokens)
