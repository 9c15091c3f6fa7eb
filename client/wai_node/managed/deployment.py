"""One deployed model's life, as a state machine: what to do next, from what happened.

Sans-I/O: events go in by method, actions come out, time is an argument. It starts no process,
downloads nothing and writes nothing (`supervisor` does). A running server is known by a number, its
generation, so that a new one may load while the old one still answers.

    absent → downloading → starting → ready → draining → stopping → absent
    asleep: unloaded while nobody asks; failed: with a reason, and tried again where that may help
"""

from __future__ import annotations

import enum
import functools
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

START_TRIES: Final = (
    3  # a first start that fails thrice fails for good: the file or the box is wrong
)
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
STEADY_S: Final = 300.0  # after so long without a crash, the next one counts as the first
DRAIN_LIMIT_S: Final = 120.0  # an answer still going on after this is cut: others wait for its end
BESIDE_DRAIN_LIMIT_S: Final = 600.0  # nobody waits, it costs memory: as long as a node drains
DOWNLOAD_RETRY_S: Final = 300.0  # after the hub could not be reached at all
CONTEXT_ROUNDING: Final = 256  # llama-server rounds a slot's context to this, or to the trained one


class State(enum.Enum):
    """Where a deployment is; the value is what a person reads."""

    ABSENT = "absent"
    DOWNLOADING = "downloading"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    ASLEEP = "asleep"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model is to be served. `context_tokens` is per slot; `idle_unload_s` None: never.

    `load_limit_s` is how long loading may take before it counts as hung. `gpu_layers` None: a box
    without a GPU.
    """

    context_tokens: int
    slots: int
    gpu_layers: int | None = None
    idle_unload_s: float | None = None
    load_limit_s: float = 300.0


@dataclass(frozen=True, slots=True)
class StartDownload:
    """Bring the files, then call `download_done` or `download_failed`."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a server; then `server_ready` or `server_ended`."""

    generation: int
    wish: Wish


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop a server; then `server_ended`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing of it runs any more and it was removed: delete its files."""


Action = StartDownload | Launch | Halt | Gone


class _Goal(enum.Enum):
    """What is to happen once the serving server has ended."""

    NOTHING = enum.auto()
    RELAUNCH = enum.auto()
    SLEEP = enum.auto()
    REMOVE = enum.auto()


@dataclass(slots=True)
class Deployment:
    """The machine. Read `state`, `reason` and `log_tail`; drive it by its methods.

    `wish` is what is wanted now; `proven` what it was last served with, in an earlier run too: the
    way back where `wish` does not come up. `swap_error` says why the last change of context was
    taken back.
    """

    wish: Wish
    proven: Wish | None = None
    state: State = State.ABSENT
    reason: str = ""
    log_tail: tuple[str, ...] = ()
    swap_error: str = ""
    serving: int | None = None
    context_served: int | None = None
    _generation: int = 0
    _loading: int | None = None
    _draining: int | None = None  # the one that still answers, and takes nothing new
    _halting: set[int] = field(default_factory=set)
    _goal: _Goal = _Goal.NOTHING
    _in_flight: Counter[int] = field(default_factory=Counter)
    _failures: int = 0
    _ready_since: float = 0.0
    _load_deadline: float | None = None
    _drain_deadline: float | None = None
    _retry_at: float | None = None
    _downloaded: bool = False
    _idle_at: float | None = None

    # -- what people ask for

    def deploy(self) -> list[Action]:
        """Begin, or begin again after a failure."""
        if self.state not in (State.ABSENT, State.FAILED):
            return []
        self._failures = 0
        self._retry_at = None
        self._enter(State.DOWNLOADING)
        return [StartDownload()]

    def change(self, wish: Wish, now: float, *, beside: bool) -> list[Action]:
        """Serve with `wish` from now on: `beside` the old server, or after it was drained.

        If the new one does not come up, the old wish is served again and `swap_error` says why.
        """
        self.swap_error = ""
        served = self.state is State.READY and not self.changing
        if self._goal is _Goal.REMOVE or (served and wish == self.wish):
            return []
        old, self.wish = self.wish, wish
        if self.serving is None:
            halted: list[Action] = []
            if self._loading is not None:  # it loads what nobody wants any more
                self._goal = _Goal.RELAUNCH
                halted = self._halt(self._loading)
                self._loading = None
                self._load_deadline = None
            return halted
        self.proven = self.proven or old
        if beside and self.state is State.READY:
            return self._launch(now)
        return self._drain(_Goal.RELAUNCH, now)

    def set_times(self, now: float, *, idle_unload_s: float | None, load_limit_s: float) -> None:
        """Other times for what is served, which goes on."""
        change = functools.partial(replace, idle_unload_s=idle_unload_s, load_limit_s=load_limit_s)
        self.wish = change(self.wish)
        self.proven = change(self.proven) if self.proven is not None else None
        if self._idle_at is not None or self.state is State.READY:
            self._idle_at = None
            self._rest(now)

    def remove(self, now: float) -> list[Action]:
        """Serve it no more: what is being answered is finished first."""
        self._retry_at = self._idle_at = None
        self._goal = _Goal.REMOVE
        actions: list[Action] = []
        if self._loading is not None:
            actions += self._halt(self._loading)
            self._loading = None
            self._load_deadline = None
        if self.serving is not None:
            return actions + self._drain(_Goal.REMOVE, now)
        if not self._halting:
            return actions + self._finish(now)
        self._enter(State.STOPPING)
        return actions

    # -- what happened

    def download_done(self, now: float) -> list[Action]:
        """The files are here, verified."""
        if self.state is not State.DOWNLOADING:
            return []
        self._downloaded = True
        return self._launch(now)

    def download_failed(self, reason: str, now: float, *, may_pass: bool) -> list[Action]:
        """They can't be had. Unless that `may_pass`, trying again is up to whoever deployed."""
        if self.state is State.DOWNLOADING:
            self._fail(reason, ())
            self._retry_at = now + DOWNLOAD_RETRY_S if may_pass else None
        return []

    def server_ready(self, generation: int, context_tokens: int, now: float) -> list[Action]:
        """A server has loaded and says how much context a slot has."""
        if generation != self._loading:
            return []
        wanted = self.wish.context_tokens
        if context_tokens + CONTEXT_ROUNDING < wanted:
            self._loading = self._load_deadline = None
            reason = f"the server gives {context_tokens} tokens of context instead of {wanted}"
            return [*self._halt(generation), *self._start_failed(reason, (), now)]
        self._loading = self._load_deadline = self._retry_at = None
        old, self.serving = self.serving, generation
        self.context_served = context_tokens
        self.proven = self.wish
        self._ready_since = now
        self._enter(State.READY)
        self._rest(now)
        if old is None:
            return []
        return self._begin_drain(old, now)

    def server_ended(
        self, generation: int, reason: str, log_tail: tuple[str, ...], now: float
    ) -> list[Action]:
        """A server's process is gone, whether it was told to or not."""
        self._in_flight.pop(generation, None)
        asked = generation in self._halting
        self._halting.discard(generation)
        if generation == self._draining:
            self._draining = self._drain_deadline = None
        if generation == self._loading:
            self._loading = self._load_deadline = None
            return self._start_failed(reason, log_tail, now)
        if generation == self.serving:
            self.serving = self.context_served = None
            if not asked and self._goal is _Goal.NOTHING:
                return self._crashed(reason, log_tail, now)
        if self.serving is None and self._loading is None and not self._halting:
            return self._finish(now)
        return []

    def lease(self, now: float) -> tuple[int | None, list[Action]]:
        """A request came: the generation that takes it, or None (wait, after the actions)."""
        self._idle_at = None
        if self.state is State.ASLEEP:
            return None, self._launch(now)
        if self.serving is None or self._goal is not _Goal.NOTHING:
            return None, []
        self._in_flight[self.serving] += 1
        return self.serving, []

    def release(self, generation: int, now: float) -> list[Action]:
        """A leased request is over."""
        if self._in_flight[generation] > 0:
            self._in_flight[generation] -= 1
        if self._in_flight[generation]:
            return []
        if generation == self._draining:
            return self._end_drain()
        self._rest(now)
        return []

    @property
    def changing(self) -> bool:
        """Whether it is on its way to `wish` from another that it served with."""
        return self._goal is _Goal.RELAUNCH or (
            self.serving is not None and self._loading is not None
        )

    @property
    def in_flight(self) -> int:
        """Requests under way, on all generations."""
        return self._in_flight.total()

    # -- time

    def next_deadline(self) -> float | None:
        """When `handle_timeout` is due next, or None."""
        times = (self._load_deadline, self._drain_deadline, self._retry_at, self._idle_at)
        return min((t for t in times if t is not None), default=None)

    def handle_timeout(self, now: float) -> list[Action]:
        """Do what is due at `now`."""
        actions: list[Action] = []
        if _due(self._load_deadline, now) and self._loading is not None:
            generation, self._loading, self._load_deadline = self._loading, None, None
            limit_s = self.wish.load_limit_s
            reason = (
                f"the server was still loading after {limit_s:g} s, and was stopped; see its log "
                "with `wai node logs`, and raise load_timeout_s if its disk is slow"
            )
            actions += self._halt(generation)
            actions += self._start_failed(reason, self.log_tail, now)
        if _due(self._drain_deadline, now):
            actions += self._end_drain()
        if _due(self._retry_at, now):
            self._retry_at = None
            if not self._downloaded:
                self._enter(State.DOWNLOADING)
                actions.append(StartDownload())
            elif self._halting:  # the last one still holds its memory
                self._retry_at = now + BACKOFF_FIRST_S
            elif self._loading is None and self.serving is None:
                actions += self._launch(now)
        if _due(self._idle_at, now):
            self._idle_at = None
            if self.serving is not None and self._goal is _Goal.NOTHING:
                self._goal = _Goal.SLEEP
                self._enter(State.STOPPING)
                actions += self._halt(self.serving)
        return actions

    # -- inside

    def _enter(self, state: State) -> None:
        self.state = state
        if state is not State.FAILED:
            self.reason, self.log_tail = "", ()

    def _launch(self, now: float) -> list[Action]:
        """Start the next generation; one that loads already is replaced."""
        actions = self._halt(self._loading) if self._loading is not None else []
        self._generation += 1
        self._loading = self._generation
        self._load_deadline = now + self.wish.load_limit_s
        self._idle_at = None
        if self.serving is None:
            self._enter(State.STARTING)
        return [*actions, Launch(self._generation, self.wish)]

    def _halt(self, generation: int) -> list[Action]:
        if generation in self._halting:
            return []
        self._halting.add(generation)
        return [Halt(generation)]

    def _drain(self, goal: _Goal, now: float) -> list[Action]:
        self._goal = goal
        self._idle_at = None
        self._enter(State.DRAINING)
        assert self.serving is not None
        return self._begin_drain(self.serving, now)

    def _begin_drain(self, generation: int, now: float) -> list[Action]:
        """`generation` takes nothing new; one that drained before it has had its time."""
        actions: list[Action] = []
        if self._draining not in (None, generation):
            actions = self._end_drain()
        limit_s = DRAIN_LIMIT_S if generation == self.serving else BESIDE_DRAIN_LIMIT_S
        self._draining, self._drain_deadline = generation, now + limit_s
        return actions if self._in_flight[generation] else actions + self._end_drain()

    def _end_drain(self) -> list[Action]:
        """The draining server has nothing left to answer, or took too long."""
        self._drain_deadline = None
        if self._draining is None:
            return []
        if self._draining == self.serving:
            self._enter(State.STOPPING)
        return self._halt(self._draining)

    def _finish(self, now: float) -> list[Action]:
        """Nothing runs any more: go where it was to go."""
        goal, self._goal = self._goal, _Goal.NOTHING
        match goal:
            case _Goal.REMOVE:
                self._enter(State.ABSENT)
                return [Gone()]
            case _Goal.RELAUNCH:
                return self._launch(now)
            case _Goal.SLEEP:
                self._enter(State.ASLEEP)
                return []
            case _Goal.NOTHING:
                return []
            case _:
                assert_never(goal)

    def _start_failed(self, reason: str, log_tail: tuple[str, ...], now: float) -> list[Action]:
        """A server did not come up: back to what was served before, or again, or not at all."""
        if self._goal is _Goal.REMOVE:
            return self._finish(now) if not self._halting and self.serving is None else []
        before = self.proven
        went_back = before is not None and before != self.wish
        if before is not None and went_back:
            self.swap_error = f"{reason}; it is served as before"
            self.wish = before
        if self.serving is not None:
            self.swap_error = self.swap_error or f"{reason}; it is served as before"
            return []
        if went_back:
            if self._halting:  # its memory is needed: wait for it to end
                self._goal = _Goal.RELAUNCH
                return []
            return self._launch(now)
        self._failures += 1
        self._fail(reason, log_tail)
        if before is not None or self._failures < START_TRIES:
            self._retry_at = now + _backoff(self._failures)
        return []

    def _crashed(self, reason: str, log_tail: tuple[str, ...], now: float) -> list[Action]:
        if now - self._ready_since >= STEADY_S:
            self._failures = 0
        self._failures += 1
        self._idle_at = None
        if self._loading is not None:  # a new context is on its way already
            self._enter(State.STARTING)
            return []
        self._fail(reason, log_tail)
        self._retry_at = now + _backoff(self._failures)
        return []

    def _fail(self, reason: str, log_tail: tuple[str, ...]) -> None:
        self.state, self.reason, self.log_tail = State.FAILED, reason, log_tail

    def _rest(self, now: float) -> None:
        """With nothing in flight, count towards unloading."""
        if self.wish.idle_unload_s is not None and self.serving and not self.in_flight:
            self._idle_at = now + self.wish.idle_unload_s


def _due(deadline: float | None, now: float) -> bool:
    return deadline is not None and now >= deadline


def _backoff(failures: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** (failures - 1))
