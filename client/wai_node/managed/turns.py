"""Which models are in memory: the one rule by which deployments of a node take turns. Pure.

`Turns.decide` is told each deployment as a `Seat`, what memory is free, and the time. It says who
may load now, who is unloaded for it, and who takes no new requests until that can be. `room` asks
it whenever something has changed, and carries the answer out.

The rule. A model V makes room for a model W only while V has no request in progress, and

- V is kept loaded: if W has the higher priority;
- W has the higher priority: at once;
- both have the same: when V's turn is over, or V was not used for a share of its load time. A turn
  lasts for a multiple of V's load time, so that loads never take more than a certain share of the
  time; then V takes no new requests until it has made room, so that W is not waiting for ever;
- W has the lower one: when V was not used for many times its load time.

Of those, the least important and then the least recently used goes first. Who waits is served in
the order of priority, then of arrival; nobody takes what an earlier one waits for.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from wai_node.models.space import NOTHING, Space

# A turn lasts for so many of the model's own load times. With 2, two busy models of equal load
# times spend a third of the time with loading (docs/models.md has what was measured).
TURN_LOADS: Final = 2.0
LEAST_TURN_S: Final = 5.0  # below, requests that arrive together are not answered together
MOST_TURN_S: Final = 120.0  # callers' patience: two turns and two loads are waited for at most
# A model that nobody has used for this share of its load time makes room before its turn is over:
# a caller that thinks for a moment between two requests finds it loaded.
IDLE_LOADS: Final = 0.25
LEAST_IDLE_S: Final = 0.25  # longer than the relay takes to send the next request that waits there
# A more important model makes room for a less important one when it was idle for so long: a use of
# it must then wait for its load, which it does at most once in so many load times.
YIELD_LOADS: Final = 10.0
LEAST_YIELD_S: Final = 60.0


class Stage(enum.Enum):
    """Where a deployment is. `CHANGING`: its server is replaced; it takes memory, and can't be
    unloaded."""

    OUT = enum.auto()
    WANTED = enum.auto()
    LOADING = enum.auto()
    LOADED = enum.auto()
    CHANGING = enum.auto()
    LEAVING = enum.auto()


class Seat(msgspec.Struct, frozen=True):
    """One deployment. `needs`: what it takes in memory, or will. `busy`: its requests in progress.
    `since`: when it was first wanted, or when it had loaded; `used_at`: when a request was last in
    progress. `load_s`: how long a load takes."""

    name: str
    stage: Stage
    needs: Space
    priority: int = 0
    kept: bool = False
    busy: int = 0
    since: float = 0.0
    used_at: float = 0.0
    load_s: float = 1.0


class Plan(msgspec.Struct):
    """What to do now. `load`: these may begin. `unload`: these are unloaded, each for another.
    `close`: these take no new requests until they are. `waits`: for whom those wait that may not
    begin. `blocked`: these have no way to room, and why. `again_at`: when to ask again, though
    nothing changes."""

    load: list[str] = msgspec.field(default_factory=list)
    unload: dict[str, str] = msgspec.field(default_factory=dict)
    close: set[str] = msgspec.field(default_factory=set)
    waits: dict[str, list[str]] = msgspec.field(default_factory=dict)
    blocked: dict[str, str] = msgspec.field(default_factory=dict)
    again_at: float | None = None

    def look_again(self, at: float) -> None:
        """Ask again at this time at the latest."""
        self.again_at = at if self.again_at is None else min(at, self.again_at)


class Turns(msgspec.Struct, frozen=True):
    """The rule, with its constants."""

    turn_loads: float = TURN_LOADS
    least_turn_s: float = LEAST_TURN_S
    most_turn_s: float = MOST_TURN_S
    idle_loads: float = IDLE_LOADS

    def decide(self, seats: Sequence[Seat], free: Space, now: float) -> Plan:
        """Decide for all that are wanted. `free` has what `LOADING` ones will take taken off."""
        plan = Plan()
        in_memory = [s for s in seats if s.stage not in (Stage.OUT, Stage.WANTED)]
        unsettled = any(s.stage is not Stage.LOADED for s in in_memory)
        # With what is promised to earlier ones, and is on its way to be free.
        later = free + _sum(s.needs for s in in_memory if s.stage is Stage.LEAVING)
        taken: set[str] = set()  # those that make room for an earlier one
        for wanted in sorted(_wanted(seats), key=lambda s: (-s.priority, s.since)):
            # Only the engine can say whether a model fits an empty box, if not the estimate.
            alone = not in_memory and not plan.load
            if alone or (free.holds(wanted.needs) and later.holds(wanted.needs)):
                plan.load.append(wanted.name)
                free, later = free - wanted.needs, later - wanted.needs
                continue
            left = [s for s in in_memory if s.stage is Stage.LOADED and s.name not in taken]
            able = [s for s in left if may_take(wanted, s)]
            if not (later + _sum(s.needs for s in able)).holds(wanted.needs):
                if not (unsettled or taken or plan.load):
                    plan.blocked[wanted.name] = _blocked(wanted, left)
                continue
            victims = self._victims(wanted, able, later, now)
            taken.update(s.name for s in victims)
            plan.waits[wanted.name] = [seat.name for seat in victims]
            self._make_room(plan, wanted, victims, now)
            later = later + _sum(s.needs for s in victims) - wanted.needs
        return plan

    def _victims(self, wanted: Seat, able: list[Seat], room: Space, now: float) -> list[Seat]:
        """Those of `able` that make room for `wanted`, who fits then."""

        def order(seat: Seat) -> tuple[bool, int, float, float]:
            at = self.free_at(wanted, seat)
            now_free = not seat.busy and at <= now
            return not now_free, seat.priority, 0.0 if now_free else at, seat.used_at

        chosen: list[Seat] = []
        for seat in sorted(able, key=order):
            if room.holds(wanted.needs):
                break
            chosen.append(seat)
            room += seat.needs
        for seat in list(chosen):  # a larger one that came later may be enough
            if (room - seat.needs).holds(wanted.needs):
                chosen.remove(seat)
                room -= seat.needs
        return chosen

    def _make_room(self, plan: Plan, wanted: Seat, victims: list[Seat], now: float) -> None:
        """Unload `victims` once all of them can go: none earlier, because that helps nobody."""
        ready = [s for s in victims if not s.busy and self.free_at(wanted, s) <= now]
        if len(ready) == len(victims):
            plan.unload.update((seat.name, wanted.name) for seat in victims)
            return
        over_at = [self.turn_ends_at(wanted, seat) for seat in victims]
        if max(over_at) <= now:  # what is in progress is answered, and nothing begun
            plan.close.update(seat.name for seat in victims)
            return
        plan.look_again(max(over_at))
        for seat in victims:
            if not seat.busy and (at := self.free_at(wanted, seat)) > now:
                plan.look_again(at)

    def turn_ends_at(self, wanted: Seat, seat: Seat) -> float:
        """When `seat` takes no new requests until it has made room for `wanted`."""
        if wanted.priority > seat.priority:
            return seat.since
        if wanted.priority < seat.priority:  # only once it is idle
            return self.free_at(wanted, seat)
        turn_s = max(self.least_turn_s, self.turn_loads * seat.load_s)
        return seat.since + min(self.most_turn_s, turn_s)

    def free_at(self, wanted: Seat, seat: Seat) -> float:
        """When `seat` can make room for `wanted`, if it is not used until then."""
        if wanted.priority > seat.priority:
            return seat.since
        if wanted.priority < seat.priority:
            return seat.used_at + max(LEAST_YIELD_S, YIELD_LOADS * seat.load_s)
        idle_at = seat.used_at + max(LEAST_IDLE_S, self.idle_loads * seat.load_s)
        return min(idle_at, self.turn_ends_at(wanted, seat))


def may_take(wanted: Seat, seat: Seat) -> bool:
    """Whether `seat` ever makes room for `wanted`."""
    return wanted.priority > seat.priority or not seat.kept


def _wanted(seats: Iterable[Seat]) -> list[Seat]:
    return [seat for seat in seats if seat.stage is Stage.WANTED]


def _sum(spaces: Iterable[Space]) -> Space:
    return sum(spaces, NOTHING)


def _blocked(wanted: Seat, left: list[Seat]) -> str:
    kept = [seat for seat in left if not may_take(wanted, seat)]
    if not kept:
        return f"there is no memory for its {wanted.needs}, though all other models are unloaded"
    names = ", ".join(sorted(seat.name for seat in kept))
    verb = "is" if len(kept) == 1 else "are"
    return (
        f"there is no memory for its {wanted.needs} beside {names}, which {verb} kept loaded; "
        "have that loaded on demand, or give this one a higher priority"
    )
