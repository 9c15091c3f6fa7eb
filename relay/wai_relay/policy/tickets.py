"""A request on its way through the scheduler: handed in, placed, over. They hold no rules."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from wai_protocol.errors import WaiError

from .concurrency import Beginning
from .demands import Demand
from .fair_queue import Entry
from .lanes import Lane
from .ledger import Claim
from .selection import Decision


class Result(enum.Enum):
    """How a placed request ended, as far as its node is concerned."""

    SERVED = "served"
    CANCELLED = "cancelled"  # by the caller: says nothing about the node
    FULL = "full"  # the node had no room for it: other relays had filled it
    REFUSED = "refused"  # for the caller's own mistake: says nothing about the node
    FAILED = "failed"  # by the node's or its upstream's fault
    SUSPECT = "suspect"  # it failed, by the node's fault or the request's: see `Scheduler.blame`


class Tokens(msgspec.Struct, frozen=True):
    """What a request took. `cached` is None where the upstream did not say."""

    prompt: int
    cached: int | None
    completion: int


class Placement:
    """A request's slot on a node. End it with `Scheduler.finish`, whatever happens."""

    __slots__ = (
        *("beginning", "claim", "decision", "demand", "first_at", "key_id", "lane", "load_s"),
        *("over", "placed_at", "placed_beside", "read_s", "took_s", "waited_s", "warm_tokens"),
    )

    def __init__(
        self,
        ticket: Ticket,
        lane: Lane,
        claim: Claim,
        decision: Decision,
        placed_at: float,
        warm_tokens: int,
    ) -> None:
        self.demand = ticket.demand
        self.key_id = ticket.key_id
        self.lane = lane
        self.claim = claim
        self.decision = decision
        self.placed_at = placed_at
        self.placed_beside = lane.ledger.busy  # requests on that node then, this one included
        self.waited_s = placed_at - ticket.at
        self.warm_tokens = warm_tokens
        self.load_s = lane.load_s  # its first token says nothing of its reading, unless 0.0
        self.beginning: Beginning | None = None
        self.first_at: float | None = None
        self.read_s = 0.0
        self.took_s = 0.0  # from its placing to its end
        self.over = False

    @property
    def node(self) -> str:
        """The node's name."""
        return self.lane.node


class Ticket:
    """A request that was handed in. `placement` is set once it has a slot, `error` if it is refused
    after all; `on_change` is called when either happens."""

    __slots__ = (
        "at",
        "demand",
        "entry",
        "error",
        "hurry_at",
        "key_id",
        "on_change",
        "placement",
        "round",
        "until",
        "waits_for",
    )

    def __init__(self, demand: Demand, key_id: str, at: float, until: float) -> None:
        self.demand = demand
        self.key_id = key_id
        self.at = at
        self.until = until
        self.hurry_at = (at + until) / 2  # then it lets nobody pass any more
        self.entry: Entry[Ticket] | None = None
        self.round = 0  # the last round of ticks in which it was looked at
        self.waits_for = ""  # the node that looked best when it was last looked at
        self.placement: Placement | None = None
        self.error: WaiError | None = None
        self.on_change: Callable[[], None] = _nothing

    def refuse(self, error: WaiError) -> None:
        """It won't be served."""
        self.entry = None
        self.error = error
        self.on_change()


def _nothing() -> None:
    """Until somebody listens."""
