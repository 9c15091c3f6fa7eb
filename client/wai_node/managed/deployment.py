"""The life of one deployed model, as a sans-I/O state machine.

Methods report events and return actions; time is an argument. The machine starts no process, and
downloads and writes nothing (`keeper` carries out the actions). Each server that is started has a
number, its generation, so that a new one can load while the old one still answers.

    absent → downloading → starting → ready → draining → stopping → absent
    asleep: unloaded because it was idle; failed: has a `reason`, and is retried where that may help
"""

from __future__ import annotations

import enum
import functools
from collections import Counter
from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from wai_node.models.placement import Placement

from .wish import Action, DeleteFiles, Halt, Launch, StartDownload, State, Wish

__all__ = ["Action", "DeleteFiles", "Halt", "Launch", "StartDownload", "State", "Wish"]

START_TRIES: Final = 3  # then it is given up: the file or the machine is the cause
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
# A model that loads on demand is tried again by a request only, and may unload others for it.
ASLEEP_BACKOFF_MAX_S: Final = 600.0
STEADY_S: Final = 300.0  # after so long without a crash, the count of failures starts again
DRAIN_LIMIT_S: Final = (
    120.0  # then answers are cut off, because other requests wait for the new server
)
BESIDE_DRAIN_LIMIT_S: Final = (
    600.0  # nobody waits for the old server, but it takes memory; as long as a node drains
)
DOWNLOAD_RETRY_S: Final = 300.0  # after the hub could not be reached at all
CONTEXT_ROUNDING: Final = (
    256  # llama-server rounds a slot's context up to a multiple, or to the trained one
)


class _Goal(enum.Enum):
    """What to do once the serving server has ended."""

    NOTHING = enum.auto()
    RELAUNCH = enum.auto()
    SLEEP = enum.auto()
    REMOVE = enum.auto()


class Deployment(msgspec.Struct):
    """The state machine of one deployment. Every method that returns actions may change `state`.

    `wish` is the desired way to serve it. `proven` is the last one that worked, perhaps in an
    earlier run; it is restored if a server with `wish` does not start. `swap_error` says why the
    last change of context was reverted. `closing`: new requests wait, because it is to make room
    for another model. `used_at`: when a request was last in progress; `load_s`: how long the last
    load took. `relaunched`: it loads again because its server is replaced.
    """

    wish: Wish
    proven: Wish | None = None
    state: State = State.ABSENT
    reason: str = ""
    log_tail: tuple[str, ...] = ()
    swap_error: str = ""
    serving: int | None = None
    context_served: int | None = None
    closing: bool = False
    used_at: float = 0.0
    load_s: float | None = None
    relaunched: bool = False
    ready_since: float = 0.0
    _generation: int = 0
    _loading: int | None = None
    _draining: int | None = None  # the generation that finishes its answers
    _halting: set[int] = msgspec.field(default_factory=set)
    _goal: _Goal = _Goal.NOTHING
    _in_flight: Counter[int] = msgspec.field(default_factory=Counter)
    _failures: int = 0
    _begun_at: float = 0.0
    _asked: bool = False  # a request waits that came before the model could be loaded
    _load_deadline: float | None = None
    _drain_deadline: float | None = None
    _retry_at: float | None = None
    _downloaded: bool = False
    _idle_at: float | None = None

    # -- what people ask for

    def deploy(self) -> list[Action]:
        """Begin to download and serve, or try again after a failure."""
        if self.state not in (State.ABSENT, State.FAILED):
            return []
        self._failures = 0
        self._retry_at = None
        self._enter(State.DOWNLOADING)
        return [StartDownload()]

    def change(self, wish: Wish, now: float, *, beside: bool) -> list[Action]:
        """Change to `wish`, without dropping requests.

        `beside`: start the new server while the old one still answers; otherwise drain the old one
        first. If the new server does not start, the old wish is restored and `swap_error` says why.
        """
        self.swap_error = ""
        served = self.state is State.READY and not self.changing
        if self._goal is _Goal.REMOVE or (served and wish == self.wish):
            return []
        old, self.wish = self.wish, wish
        if self.serving is None:
            if self._loading is not None:  # it loads a wish that has been replaced
                self._goal = _Goal.RELAUNCH
            return self._halt_loading()
        self.proven = self.proven or old
        if beside and self.state is State.READY:
            return self._launch(now)
        return self._drain(_Goal.RELAUNCH, now)

    def set_times(
        self,
        now: float,
        *,
        idle_unload_s: float | None,
        load_limit_s: float,
        on_demand: bool = False,
    ) -> None:
        """Change when it is loaded and unloaded, without a restart of the server."""
        change = functools.partial(
            replace, idle_unload_s=idle_unload_s, load_limit_s=load_limit_s, on_demand=on_demand
        )
        self.wish = change(self.wish)
        self.proven = change(self.proven) if self.proven is not None else None
        if self._idle_at is not None or self.state is State.READY:
            self._idle_at = None
            self._start_idle_timer(now)

    def rename(self, alias: str) -> None:
        """Have callers ask for it by another second name, without a restart of the server."""
        self.wish = self.wish.renamed(alias)
        self.proven = self.proven.renamed(alias) if self.proven is not None else None

    def remove(self, now: float) -> list[Action]:
        """Stop serving; requests in progress finish first."""
        self._retry_at = self._idle_at = None
        self._goal = _Goal.REMOVE
        actions = self._halt_loading()
        if self.serving is not None:
            return actions + self._drain(_Goal.REMOVE, now)
        if not self._halting:
            return actions + self._finish(now)
        self._enter(State.STOPPING)
        return actions

    # -- what happened

    def download_done(self, now: float) -> list[Action]:
        """Report that the files are present and verified."""
        if self.state is not State.DOWNLOADING:
            return []
        self._downloaded = True
        if self.wish.on_demand and self.proven is not None and not self._asked:
            self._enter(State.ASLEEP)  # it was served before: that it loads need not be shown
            return []
        return self._launch(now)

    def place(self, generation: int, placement: Placement | None) -> None:
        """Report where the layers of a server go that is to be launched."""
        if generation != self._loading:
            return
        if self.proven is not None and self.proven.placed(self.wish.placement) == self.wish:
            self.proven = self.proven.placed(placement)  # the same, elsewhere: no change to revert
        self.wish = self.wish.placed(placement)

    def begin_load(self, generation: int, now: float) -> None:
        """Report that a server that was to be launched is started now."""
        if generation == self._loading:
            self._begun_at = now
            self._load_deadline = now + self.wish.load_limit_s

    def wait_for_room(self, generation: int) -> None:
        """Report that a server that was to be launched waits for room: that has no limit here."""
        if generation == self._loading:
            self._load_deadline = None

    def unload(self) -> list[Action]:
        """Make room for another model, if no request is in progress."""
        if not self.can_unload or self.in_flight or self.serving is None:
            return []
        return self._fall_asleep(self.serving)

    def withdraw(self) -> list[Action]:
        """Load it no more: it waits for room, and nobody waits for it any longer."""
        if self._loading is None or self.serving is not None or self._goal is not _Goal.NOTHING:
            return []
        self._goal = _Goal.SLEEP
        return self._halt_loading()

    def wake(self, now: float) -> list[Action]:
        """Load it without a request, if it is asleep."""
        return self._launch(now) if self.state is State.ASLEEP else []

    def download_failed(self, reason: str, now: float, *, may_pass: bool) -> list[Action]:
        """Report a failed download. `may_pass`: try again later without being asked."""
        if self.state is State.DOWNLOADING:
            self._fail(reason, ())
            self._retry_at = now + DOWNLOAD_RETRY_S if may_pass else None
        return []

    def server_ready(self, generation: int, context_tokens: int, now: float) -> list[Action]:
        """Report that a server has loaded, with the context per slot that it provides."""
        if generation != self._loading:
            return []
        wanted = self.wish.context_tokens
        if context_tokens + CONTEXT_ROUNDING < wanted:
            reason = f"the server gives {context_tokens} tokens of context instead of {wanted}"
            return [*self._halt_loading(), *self._start_failed(reason, (), now)]
        self._loading = self._load_deadline = self._retry_at = None
        old, self.serving = self.serving, generation
        self.context_served = context_tokens
        self.proven = self.wish
        self.ready_since = self.used_at = now
        self.load_s = now - self._begun_at
        self._asked = self.relaunched = False
        self._enter(State.READY)
        self._start_idle_timer(now)
        if old is None:
            return []
        return self._begin_drain(old, now)

    def server_ended(
        self, generation: int, reason: str, log_tail: tuple[str, ...], now: float
    ) -> list[Action]:
        """Report that a server's process has ended, whether on request or by itself."""
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
            self.closing = False
            if not asked and self._goal is _Goal.NOTHING:
                return self._crashed(reason, log_tail, now)
        if self.serving is None and self._loading is None and not self._halting:
            return self._finish(now)
        return []

    def lease(self, now: float) -> tuple[int | None, list[Action]]:
        """Report a request. Return the generation that takes it, or None if it has to wait."""
        self._idle_at = None
        self.used_at = now
        if self.state is State.ASLEEP:
            return None, self._launch(now)
        if self.serving is None or self._goal is not _Goal.NOTHING or self.closing:
            self._asked = True
            return None, []
        self._in_flight[self.serving] += 1
        return self.serving, []

    def release(self, generation: int, now: float) -> list[Action]:
        """Report the end of a request that `lease` assigned to `generation`."""
        self.used_at = now
        if self._in_flight[generation] > 0:
            self._in_flight[generation] -= 1
        if self._in_flight[generation]:
            return []
        if generation == self._draining:
            return self._end_drain()
        self._start_idle_timer(now)
        return []

    @property
    def changing(self) -> bool:
        """Whether a change from another wish to `wish` is in progress."""
        return self._goal is _Goal.RELAUNCH or (
            self.serving is not None and self._loading is not None
        )

    @property
    def can_unload(self) -> bool:
        """Whether it is served, and nothing about that is being changed."""
        return self.state is State.READY and not self.changing and self._draining is None

    @property
    def loading(self) -> int | None:
        """The generation that loads, or waits for room to load."""
        return self._loading

    @property
    def given_up(self) -> bool:
        """Whether it has failed, and will not soon be tried again: nobody should wait for it.

        A server that crashed comes back within seconds, unless it does so time after time.
        """
        retried_soon = self._retry_at is not None and self._downloaded
        return self.state is State.FAILED and not (retried_soon and self._failures < START_TRIES)

    @property
    def in_flight(self) -> int:
        """The number of requests in progress, on all generations."""
        return self._in_flight.total()

    # -- time

    def next_deadline(self) -> float | None:
        """Return the time at which `handle_timeout` is due, or None."""
        times = (self._load_deadline, self._drain_deadline, self._retry_at, self._idle_at)
        return min((t for t in times if t is not None), default=None)

    def handle_timeout(self, now: float) -> list[Action]:
        """Handle every deadline that has passed at `now`."""
        actions: list[Action] = []
        if _due(self._load_deadline, now) and self._loading is not None:
            limit_s = self.wish.load_limit_s
            reason = (
                f"the server was still loading after {limit_s:g} s, and was stopped; see its log "
                "with `wai node logs`, and raise load_timeout_s if its disk is slow"
            )
            actions += self._halt_loading()
            actions += self._start_failed(reason, self.log_tail, now)
        if _due(self._drain_deadline, now):
            actions += self._end_drain()
        if _due(self._retry_at, now):
            self._retry_at = None
            if not self._downloaded:
                self._enter(State.DOWNLOADING)
                actions.append(StartDownload())
            elif self._halting:  # the last server still holds its memory
                self._retry_at = now + BACKOFF_FIRST_S
            elif self.wish.on_demand and self.proven is not None:
                self.state = State.ASLEEP  # the next request tries again; the reason stays told
            elif self._loading is None and self.serving is None:
                actions += self._launch(now)
        if _due(self._idle_at, now):
            self._idle_at = None
            if self.serving is not None and self._goal is _Goal.NOTHING:
                actions += self._fall_asleep(self.serving)
        return actions

    # -- inside

    def _enter(self, state: State) -> None:
        self.state = state
        if state is not State.FAILED:
            self.reason, self.log_tail = "", ()

    def _launch(self, now: float) -> list[Action]:
        """Start the next generation; it replaces one that is still loading."""
        actions = self._halt_loading()
        self._generation += 1
        self._loading = self._generation
        self._load_deadline = now + self.wish.load_limit_s
        self._idle_at = None
        if self.serving is None:
            self._enter(State.STARTING)
        return [*actions, Launch(self._generation, self.wish)]

    def _fall_asleep(self, serving: int) -> list[Action]:
        """Stop the server that serves; it is a good one."""
        self._goal, self._idle_at, self.closing, self._failures = _Goal.SLEEP, None, False, 0
        self._enter(State.STOPPING)
        return self._halt(serving)

    def _halt_loading(self) -> list[Action]:
        """Stop the server that loads, if one does: it is wanted no more."""
        generation, self._loading, self._load_deadline = self._loading, None, None
        return [] if generation is None else self._halt(generation)

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
        """Give `generation` no new requests; stop an older one that is still draining."""
        actions: list[Action] = []
        if self._draining not in (None, generation):
            actions = self._end_drain()
        limit_s = DRAIN_LIMIT_S if generation == self.serving else BESIDE_DRAIN_LIMIT_S
        self._draining, self._drain_deadline = generation, now + limit_s
        return actions if self._in_flight[generation] else actions + self._end_drain()

    def _end_drain(self) -> list[Action]:
        """Stop the draining server: it has answered everything, or took too long."""
        self._drain_deadline = None
        if self._draining is None:
            return []
        if self._draining == self.serving:
            self._enter(State.STOPPING)
        return self._halt(self._draining)

    def _finish(self, now: float) -> list[Action]:
        """Continue with the goal, now that no server runs."""
        goal, self._goal = self._goal, _Goal.NOTHING
        match goal:
            case _Goal.REMOVE:
                self._enter(State.ABSENT)
                return [DeleteFiles()]
            case _Goal.RELAUNCH:
                self.relaunched = True
                return self._launch(now)
            case _Goal.SLEEP:
                self._enter(State.ASLEEP)
                return []
            case _Goal.NOTHING:
                return []
            case _:
                assert_never(goal)

    def _start_failed(self, reason: str, log_tail: tuple[str, ...], now: float) -> list[Action]:
        """Handle a failed start: restore the proven wish, try again, or fail."""
        if self._goal is _Goal.REMOVE:
            return self._finish(now) if not self._halting and self.serving is None else []
        before = self.proven
        went_back = before is not None and before != self.wish
        if before is not None and went_back:
            self.swap_error = f"{reason}; the model is served as before"
            self.wish = before
        if self.serving is not None:
            self.swap_error = self.swap_error or f"{reason}; the model is served as before"
            return []
        if went_back:
            if self._halting:  # wait for the old server to end, because its memory is needed
                self._goal = _Goal.RELAUNCH
                return []
            return self._launch(now)
        self._failures += 1
        self._fail(reason, log_tail)
        if before is not None or self._failures < START_TRIES:
            self._retry_at = now + self._backoff_s()
        return []

    def _crashed(self, reason: str, log_tail: tuple[str, ...], now: float) -> list[Action]:
        if now - self.ready_since >= STEADY_S:
            self._failures = 0
        self._failures += 1
        self._idle_at = None
        if self._loading is not None:  # a server with the new context is loading already
            self._enter(State.STARTING)
            return []
        self._fail(reason, log_tail)
        self._retry_at = now + self._backoff_s()
        return []

    def _backoff_s(self) -> float:
        most = ASLEEP_BACKOFF_MAX_S if self.wish.on_demand else BACKOFF_MAX_S
        return min(most, BACKOFF_FIRST_S * 2.0 ** min(self._failures - 1, 32))

    def _fail(self, reason: str, log_tail: tuple[str, ...]) -> None:
        self.state, self.reason, self.log_tail = State.FAILED, reason, log_tail
        self.relaunched = False

    def _start_idle_timer(self, now: float) -> None:
        """Start the time until unloading, if no request is in progress."""
        if self.wish.idle_unload_s is not None and self.serving and not self.in_flight:
            self._idle_at = now + self.wish.idle_unload_s


def _due(deadline: float | None, now: float) -> bool:
    return deadline is not None and now >= deadline
