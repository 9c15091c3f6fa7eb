"""Room in this node's memory: who may load, who is unloaded for it, and who waits. Async.

Each launch of a server passes `take` before its process starts. `turns` has the rule; this measures
the machine, tells the rule how things are, and carries out what it says by the machines' own verbs.
Only while something waits for room is anything measured.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from wai_node.models.fit import free_space
from wai_node.models.hardware import Hardware
from wai_node.models.space import NOTHING
from wai_protocol.errors import WaiError

from .deployment import Action, State, Wish
from .deployments import Deployments
from .entry import DeploymentEntry, Held, Loaded, load_s_of
from .occupancy import free_now
from .turns import Plan, Seat, Stage, Turns

log = logging.getLogger("wai.node.managed")

# Requests come and go by the hundred while something waits; what they change is looked at together.
LOOK_EVERY_S: Final = 0.02
# What other processes take is not told to us; who waits for it finds out by this.
MEASURE_EVERY_S: Final = 5.0
# Drivers take milliseconds to answer, and requests change nothing that they would tell.
MEASURED_FOR_S: Final = 1.0

Apply = Callable[[DeploymentEntry, list[Action]], None]


class _Waiting(msgspec.Struct):
    """A launch that waits for room. Once `settled`, `refused` says why there is none, or is ""."""

    entry: DeploymentEntry
    generation: int
    held: Held
    since: float
    asked_at: float
    made_room: list[str] = msgspec.field(default_factory=list)
    refused: str = ""
    settled: anyio.Event = msgspec.field(default_factory=anyio.Event)


class Room:
    """Decides when the servers of `deployments` are started. `held_by` estimates what a server
    takes; `apply` carries out a machine's actions."""

    def __init__(
        self,
        deployments: Deployments,
        hardware: Callable[[], Hardware],
        held_by: Callable[[DeploymentEntry, Wish], Awaitable[Held]],
        now: Callable[[], float],
        turns: Turns | None = None,
    ) -> None:
        self.apply: Apply = lambda entry, actions: None
        self._deployments, self._hardware, self._held_by = deployments, hardware, held_by
        self._now, self._turns = now, turns or Turns()
        self._waiting: dict[str, _Waiting] = {}
        self._granted: dict[tuple[str, int], _Waiting] = {}
        self._news = anyio.Event()
        self._measured: tuple[float, Hardware] | None = None
        self._servers_seen = 0  # how many have begun, have loaded or have ended

    # -- what the keeper asks

    async def take(self, entry: DeploymentEntry, generation: int, wish: Wish) -> str:
        """Wait until a server may be started. Return "", or why it may not."""
        machine, alias = entry.machine, entry.model.alias
        machine.wait_for_room(generation)
        try:
            held = await self._held_by(entry, wish)
        except (WaiError, OSError):
            held = Held(NOTHING)  # its file can't be read: the server's start says why
        if generation != machine.loading:
            return "it was stopped"
        entry.needs = held.most
        # One whose server is replaced has had its room before all others.
        since = -math.inf if machine.relaunched else self._now()
        waiting = _Waiting(entry, generation, held, since, self._now())
        if machine.serving is not None:  # beside the old one: the appraisal has found room for both
            self._begin(waiting)
            return ""
        self._waiting[alias] = waiting
        self._news.set()
        await waiting.settled.wait()
        return waiting.refused

    def leave(self, entry: DeploymentEntry, generation: int) -> None:
        """A server is not to be started any more, or is to end."""
        waiting = self._waiting.get(entry.model.alias)
        if waiting is not None and waiting.generation == generation:
            self._settle(waiting, "it was stopped")

    def ended(self, entry: DeploymentEntry, generation: int) -> None:
        """A server has ended, and takes no memory any more."""
        entry.held.pop(generation, None)
        entry.asked_to_load = False
        self._granted.pop((entry.model.alias, generation), None)
        self._servers_changed()
        self._news.set()

    def loaded(self, entry: DeploymentEntry, generation: int) -> None:
        """A server has loaded: note what was waited for."""
        entry.asked_to_load = False
        self._servers_changed()
        granted = self._granted.pop((entry.model.alias, generation), None)
        took_s = entry.machine.load_s
        if granted is None or took_s is None:
            return
        waited_s = max(0.0, self._now() - granted.asked_at - took_s)
        entry.loaded = Loaded(generation, took_s, waited_s, tuple(granted.made_room))

    def observe(self, entry: DeploymentEntry) -> None:
        """Take notice of a machine, which may have changed. This is called at each request."""
        machine = entry.machine
        if self._waiting or (machine.state is State.ASLEEP and not machine.wish.on_demand):
            self._news.set()

    # -- the loop

    async def run(self) -> None:
        """Give room until cancelled."""
        while True:
            self._news = anyio.Event()
            self._wake_kept()
            self._withdraw_unwanted()
            again_at: float | None = None
            if self._waiting:
                again_at = self._look(await self._measure())
            await self._sleep(again_at)

    async def _measure(self) -> Hardware:
        """Return the machine as it is now, or was a moment ago."""
        while (known := self._measured) is None or self._now() > known[0] + MEASURED_FOR_S:
            before, at = self._servers_seen, self._now()
            found = await anyio.to_thread.run_sync(self._hardware)
            if before == self._servers_seen:  # else it may be of a moment before that
                self._measured = at, found
        return known[1]

    def _servers_changed(self) -> None:
        """What was measured is not so any more."""
        self._servers_seen += 1
        self._measured = None

    async def _sleep(self, again_at: float | None) -> None:
        if not self._waiting:
            await self._news.wait()
            return
        wait_s = MEASURE_EVERY_S if again_at is None else again_at - self._now()
        with anyio.move_on_after(min(max(wait_s, LOOK_EVERY_S), MEASURE_EVERY_S)):
            await self._news.wait()
            await anyio.sleep(LOOK_EVERY_S)

    def _wake_kept(self) -> None:
        """Have those loaded again that are to be kept so, and made room for another."""
        for entry in list(self._deployments):
            machine = entry.machine
            if machine.state is State.ASLEEP and not machine.wish.on_demand and not entry.removed:
                self.apply(entry, machine.wake(self._now()))

    def _withdraw_unwanted(self) -> None:
        """Load nothing for callers that went away while it waited for room."""
        for waiting in list(self._waiting.values()):
            entry = waiting.entry
            shown = entry.machine.proven is not None
            wanted = entry.waiting or entry.asked_to_load or entry.machine.relaunched or not shown
            if entry.machine.wish.on_demand and not wanted:
                self.apply(entry, entry.machine.withdraw())

    def _look(self, hardware: Hardware) -> float | None:
        """Ask the rule, and do what it says. Return when to ask again."""
        now = self._now()
        free = free_space(free_now(self._deployments, hardware))
        plan = self._turns.decide(list(self._seats(now)), free, now)
        for alias, wanted in plan.unload.items():
            entry = self._deployments.find(alias)
            if entry is not None and (actions := entry.machine.unload()):
                log.info("%s makes room for %s", alias, wanted)
                self._waiting[wanted].made_room.append(alias)
                self.apply(entry, actions)
        for entry in list(self._deployments):
            closing = entry.model.alias in plan.close
            if entry.machine.closing is not closing:
                entry.machine.closing = closing
                self.apply(entry, [])
        for alias in plan.load:
            self._begin(self._waiting[alias])
        for alias, why in plan.blocked.items():
            self._settle(self._waiting[alias], why)
        self._tell_waits(plan)
        return plan.again_at

    def _seats(self, now: float) -> list[Seat]:
        seats = []
        for entry in self._deployments:
            machine, alias = entry.machine, entry.model.alias
            most = sum((held.most for held in entry.held.values()), NOTHING)
            waiting = self._waiting.get(alias)
            if waiting is not None and entry.held:  # its last server is about to end
                seats.append(Seat(f"{alias} (before)", Stage.LEAVING, most))
            seats.append(
                Seat(
                    *(alias, self._stage(entry), most if waiting is None else waiting.held.most),
                    priority=entry.model.priority,
                    kept=not machine.wish.on_demand,
                    busy=machine.in_flight,
                    since=machine.ready_since if waiting is None else waiting.since,
                    used_at=now if machine.in_flight else machine.used_at,
                    load_s=load_s_of(entry),
                )
            )
        return seats

    def _stage(self, entry: DeploymentEntry) -> Stage:
        machine = entry.machine
        if entry.model.alias in self._waiting:
            return Stage.WANTED
        if not entry.held:
            return Stage.OUT
        if machine.state is State.STOPPING and not machine.changing:
            return Stage.LEAVING
        if machine.can_unload:
            return Stage.LOADED
        loading = machine.serving is None and machine.loading in entry.held
        return Stage.LOADING if loading else Stage.CHANGING

    def _begin(self, waiting: _Waiting) -> None:
        """Have its server started."""
        entry, generation = waiting.entry, waiting.generation
        entry.held[generation] = waiting.held
        self._servers_changed()
        self._granted[entry.model.alias, generation] = waiting
        entry.machine.begin_load(generation, self._now())
        self._settle(waiting, "")
        self.apply(entry, [])  # its deadline begins

    def _settle(self, waiting: _Waiting, refused: str) -> None:
        alias = waiting.entry.model.alias
        if self._waiting.get(alias) is waiting:
            del self._waiting[alias]
        waiting.refused, waiting.entry.waits_for = refused, ""
        waiting.settled.set()

    def _tell_waits(self, plan: Plan) -> None:
        """Have the list of deployments say what is waited for."""
        for alias, waiting in self._waiting.items():
            names = plan.waits.get(alias)
            text = (
                f"waits until {' and '.join(names)} can make room" if names else "waits for memory"
            )
            if waiting.entry.waits_for != text:
                waiting.entry.waits_for = text
                self.apply(waiting.entry, [])
