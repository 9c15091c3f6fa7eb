"""One model: the lanes that serve it, those that wait for it, what is known of them all. Pure."""

from __future__ import annotations

import math
from typing import Final

from .demands import Demand, Readiness, serves
from .fair_queue import FairQueue
from .lanes import BestKnown, Lane
from .selection import Decision
from .tickets import Ticket

# A node whose connection was just lost is dialling again: a request waits so long for it before it
# is refused. One whose address changed is back in a second, one that was restarted in five.
RETURN_S: Final = 10.0
# The best speeds of a model's nodes are computed anew after so many decisions, and when better ones
# were measured.
KNOWN_FOR_TURNS: Final = 256
# The usual length of a prompt follows some fifty requests.
USUAL_FADE: Final = 0.02


class Pool:
    """A model and its nodes. `lanes` by node; `queue`: those that wait, None while nobody does;
    `placed`: how many requests were; `round`: the round of ticks in which it is looked at."""

    __slots__ = ("_known", "_usual", "lanes", "model", "placed", "queue", "round")

    def __init__(self, model: str) -> None:
        self.model = model
        self.lanes: dict[str, Lane] = {}
        self.queue: FairQueue[Ticket] | None = None
        self.placed = 0
        self.round = 0
        self._known: BestKnown | None = None
        self._usual: float | None = None  # length of a prompt, a mean that fades

    def forget(self, node: str) -> None:
        """A node does not serve it any more."""
        del self.lanes[node]
        if not self.lanes:
            self.placed = 0
            self._known = self._usual = None

    def usual_tokens(self, prompt_tokens: int) -> float:
        """The usual length of a prompt before this one, which counts from now on."""
        usual = self._usual
        if usual is None:
            usual = float(prompt_tokens)
        self._usual = usual + USUAL_FADE * (prompt_tokens - usual)
        return usual

    def best_known(self, turn: int) -> BestKnown:
        """The best speeds of any of its nodes, computed anew now and then. `turn`: the number of
        the decision."""
        known = self._known
        if known is None or turn % KNOWN_FOR_TURNS == 0:
            known = BestKnown.of(self.lanes.values())
            if self.lanes:
                self._known = known
        return known

    def note_speeds(self, lane: Lane) -> None:
        """A node's speeds were measured: they may be the best of all now."""
        known = self._known
        if known is not None and known.is_worse_than(lane):
            self._known = None

    def back_by(self, demand: Demand) -> float:
        """Until when it makes sense to wait for a node that was there a moment ago."""
        return max(
            (
                lane.left_at + RETURN_S
                for node, lane in self.lanes.items()
                if lane.left_at is not None and serves(demand, lane.ledger.status, node)
            ),
            default=-math.inf,
        )

    def is_guess(self, decision: Decision) -> bool:
        """Return whether only our guess of its slots speaks against the chosen node.

        Where an upstream does not tell its slots, nobody is refused for that guess: when our queue
        is full or has no more patience, the request goes on to the upstream's own queue.
        """
        lane = self.lanes.get(decision.node or "")
        return decision.fault is None and lane is not None and lane.learns_limit

    def takes_s(self, decision: Decision) -> float:
        """How long serving a request keeps the others waiting: its time on the node that looks
        best, as a share of all slots."""
        lanes = self.lanes.values()
        slots = sum(lane.slots for lane in lanes if lane.own and lane.readiness is Readiness.READY)
        for score in decision.scores:
            if score.node == decision.node:
                return (score.prefill_s + score.generation_s) / max(slots, 1)
        return 0.0
