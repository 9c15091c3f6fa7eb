"""What every upstream serves and how busy it is, between two polls too. A pure state machine.

It merges what upstreams say about themselves with the streams that we have open there ourselves,
picks the upstream for a request, and tells the NodeStatus that follows. No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from wai_protocol.status import (
    MAX_ALIASES,
    MAX_COUNT,
    MAX_MODELS,
    MAX_NAME_CHARS,
    ModelStatus,
    NodeStatus,
)
from wai_protocol.surface import ROUTES, Route, RouteTable

from .tally import Counters, Look, OpenStream, Report, Tally, TokensSpent
from .upstream import Probe, Upstream

SPEED_WEIGHT: Final = 0.2  # of the newest answer: follows a change of load within some ten answers
LINE_SHARE: Final = 4  # a line of a quarter of the slots: what ends within a moment frees it
TIMEOUTS_BEFORE_DOWN: Final = 3  # a poll waits behind a long prefill; three in a row are no prefill


class _Entry(msgspec.Struct):
    """One upstream. `ours`: our open streams by model; `ours_then`: as they were at the poll.
    `routes`: those that it has, as in `ModelStatus`; `apis`: of which dialects these are."""

    upstream: Upstream
    apis: tuple[str, ...] = ()
    routes: frozenset[str] | None = None
    probe: Probe = msgspec.field(default_factory=lambda: Probe(()))
    ours: Counter[str] = msgspec.field(default_factory=Counter)
    ours_then: int = 0
    timeouts: int = 0
    error: str = ""
    answered: bool = False
    speeds: dict[str, tuple[float | None, float | None]] = msgspec.field(default_factory=dict)
    tally: Tally = msgspec.field(default_factory=Tally)


class Board:
    """The upstreams of one node. `routes` are those that it forwards."""

    def __init__(self, routes: RouteTable = ROUTES) -> None:
        self.routes = routes
        self._entries: dict[Upstream, _Entry] = {}

    @property
    def upstreams(self) -> list[Upstream]:
        """All of them, down or up, in the order they were added."""
        return list(self._entries)

    def add(self, upstream: Upstream) -> None:
        """Take an upstream in; it serves nothing until its first probe."""
        self._entries[upstream] = _Entry(upstream)

    def remove(self, upstream: Upstream) -> None:
        """Forget an upstream. Streams still open there may end later."""
        self._entries.pop(upstream, None)

    # -- what is learned

    def probed(self, upstream: Upstream, probe: Probe) -> None:
        """The upstream answered."""
        entry = self._entries.get(upstream)
        if entry is not None:
            models = tuple(_bounded(model, entry) for model in probe.models)
            entry.probe, entry.timeouts, entry.error = replace(probe, models=models), 0, ""
            entry.ours_then, entry.answered = entry.ours.total(), True

    def found(self, upstream: Upstream, routes: frozenset[str] | None) -> None:
        """The upstream has these routes; None: it does not tell."""
        entry = self._entries.get(upstream)
        if entry is not None:
            if routes is None and upstream.extra:
                routes = frozenset(r.path for r in self.routes if r.api in upstream.apis)
            if routes is not None:
                routes |= {route.path for route in upstream.extra}
            entry.routes = routes
            if routes is not None:
                apis = (route.api for route in self.routes if route.path in routes)
                entry.apis = tuple(dict.fromkeys(apis))
            models = tuple(_bounded(model, entry) for model in entry.probe.models)
            entry.probe = replace(entry.probe, models=models)

    def failed(self, upstream: Upstream, reason: str, *, timed_out: bool) -> bool:
        """The upstream did not answer well; returns whether it now counts as down."""
        entry = self._entries.get(upstream)
        if entry is None:
            return True
        entry.timeouts = entry.timeouts + 1 if timed_out else TIMEOUTS_BEFORE_DOWN
        if entry.timeouts < TIMEOUTS_BEFORE_DOWN:
            return False
        # what it served is known and away, which is not the same as unknown: it may come back
        away = (replace(m, ready=False, slots_busy=0, queued=0) for m in entry.probe.models)
        entry.probe, entry.error = Probe(tuple(away)), reason
        entry.ours_then = entry.ours.total()
        return True

    def started(self, upstream: Upstream, model: str, stream: OpenStream) -> None:
        """A stream of ours was opened there."""
        entry = self._entries.get(upstream)
        if entry is not None:
            entry.ours[model] += 1
            entry.tally.started(stream)

    def ended(self, upstream: Upstream, model: str, stream: OpenStream, spent: TokensSpent) -> None:
        """A stream of ours there is over, and told that it took so much."""
        entry = self._entries.get(upstream)
        if entry is not None:
            _one_less(entry, model)
            entry.tally.ended(stream, spent)

    def left(
        self,
        upstream: Upstream,
        model: str,
        stream: OpenStream,
        now: float,
        report: Report,
    ) -> None:
        """A stream of ours there was given up; `report` may hear later what it took."""
        entry = self._entries.get(upstream)
        if entry is not None:
            _one_less(entry, model)
            seen = stream.spent()
            _, usual_tps = entry.speeds.get(model, (None, None))
            if usual_tps is not None and seen.written_tps is not None:
                seen = seen._replace(written_tps=max(usual_tps, seen.written_tps))
            entry.tally.left(stream, seen, now, report)

    def measured(
        self, upstream: Upstream, model: str, prefill_tps: float | None, decode_tps: float | None
    ) -> None:
        """An answer told how fast it was, in tokens per second."""
        entry = self._entries.get(upstream)
        if entry is not None and (model in entry.speeds or len(entry.speeds) < MAX_MODELS):
            prefill, decode = entry.speeds.get(model, (None, None))
            entry.speeds[model] = (_mean(prefill, prefill_tps), _mean(decode, decode_tps))

    def look(self, upstream: Upstream) -> Look | None:
        """Call it before the upstream is asked for its `counters`."""
        entry = self._entries.get(upstream)
        return entry.tally.look() if entry is not None else None

    def settled(self, upstream: Upstream) -> bool:
        """Whether counters mean at once what they say: see `Tally.quiet`."""
        entry = self._entries.get(upstream)
        return entry is None or entry.tally.quiet

    def counted(self, upstream: Upstream, look: Look, counters: Counters, now: float) -> bool:
        """Its counters, a moment after it told them; returns whether more are waited for."""
        entry = self._entries.get(upstream)
        if entry is None:
            return False
        entry.tally.counted(look, counters, now)
        return entry.tally.wanted

    # -- what follows

    def choose(self, model: str, route: Route) -> Upstream | None:
        """The upstream for a request: of those that serve `model` by `route`, a ready one with the
        least work per slot. Without a model (lists), the first that has `route`."""
        best: tuple[bool, float] | None = None
        chosen = None
        for entry in self._entries.values():
            for polled in entry.probe.models:
                if (model and polled.id != model) or not polled.has_route(route.api, route.path):
                    continue
                work, slots = _work(entry, polled)
                rank = (not polled.ready, work / (slots or 1) if model else 0.0)
                if best is None or rank < best:
                    best, chosen = rank, entry.upstream
        return chosen

    def full(self, upstream: Upstream, model: str) -> bool:
        """Whether every slot of `model` there is taken, and the line before them too. False where
        the number of slots is not known."""
        entry = self._entries.get(upstream)
        for polled in entry.probe.models if entry is not None else ():
            if entry is not None and polled.id == model:
                work, slots = _work(entry, polled)
                return slots is not None and work >= slots + max(1, slots // LINE_SHARE)
        return False

    def serves(self, model: str) -> bool:
        """Whether any upstream has `model`, over whatever API."""
        return any(m.id == model for e in self._entries.values() for m in e.probe.models)

    def models(self, upstream: Upstream) -> tuple[ModelStatus, ...] | None:
        """What `upstream` serves, by its last word; None where it is down or has said nothing."""
        entry = self._entries.get(upstream)
        heard = entry is not None and entry.answered and not entry.error
        return entry.probe.models if entry is not None and heard else None

    def up(self, upstream: Upstream) -> bool:
        """Whether it answered when it was asked last."""
        entry = self._entries.get(upstream)
        return entry is not None and not entry.error

    def busy(self, upstream: Upstream) -> bool:
        """Whether we have streams open at `upstream`."""
        entry = self._entries.get(upstream)
        return entry is not None and bool(entry.ours)

    def active(self) -> dict[str, dict[str, int]]:
        """Our open streams: count by model by upstream's name. Empty when nothing leaks."""
        return {e.upstream.name: dict(e.ours) for e in self._entries.values() if e.ours}

    def status(
        self, *, version: str = "", draining: bool = False, detail: dict[str, Any] | None = None
    ) -> NodeStatus:
        """The node's status as of now; `detail` gains what each upstream is and why it is down."""
        models = [m for entry in self._entries.values() for m in self._statuses(entry)]
        upstreams = {
            e.upstream.name: {"kind": e.upstream.kind, "up": not e.error, "error": e.error}
            for e in self._entries.values()
        }
        told: dict[str, Any] = {**(detail or {}), "upstreams": upstreams}
        left_out = max(0, len(models) - MAX_MODELS)
        left_out += sum(entry.upstream.left_out for entry in self._entries.values())
        if left_out:
            told["models_left_out"] = left_out
        return NodeStatus(
            models=tuple(models[:MAX_MODELS]), draining=draining, version=version, detail=told
        )

    def _statuses(self, entry: _Entry) -> list[ModelStatus]:
        return [self._now(entry, model) for model in entry.probe.models]

    def _now(self, entry: _Entry, model: ModelStatus) -> ModelStatus:
        """`model` with its work brought up to date by our own streams since the poll."""
        work, slots = _work(entry, model)
        busy = work if slots is None else min(work, slots)
        prefill, decode = entry.speeds.get(model.id, (None, None))
        return replace(
            model,
            slots_total=slots,
            slots_busy=busy,
            queued=work - busy,
            prefill_tps=prefill,
            decode_tps=decode,
        )


def _work(entry: _Entry, model: ModelStatus) -> tuple[int, int | None]:
    """How many requests the upstream has for `model`, those that wait included, brought up to date
    by our own streams since the poll; and how many slots, None where that is not known."""
    if entry.probe.counted:
        work = model.slots_busy + model.queued + entry.ours.total() - entry.ours_then
    else:
        work = entry.ours[model.id]
    slots = entry.upstream.slots if model.slots_total is None else model.slots_total
    return min(max(0, work), MAX_COUNT), slots


def _bounded(model: ModelStatus, entry: _Entry) -> ModelStatus:
    """`model` with what is known of its upstream's routes, and without counts and names that STATUS
    can't carry: a relay ends the session for one."""
    return replace(
        model,
        apis=model.apis if entry.routes is None else entry.apis,
        routes=entry.routes,
        aliases=tuple(name for name in model.aliases if 0 < len(name) <= MAX_NAME_CHARS)[
            :MAX_ALIASES
        ],
        size_bytes=_count(model.size_bytes),
        largest_context_tokens=_count(model.largest_context_tokens),
        context_tokens=_count(model.context_tokens),
        slots_total=_count(model.slots_total),
        slots_busy=_count(model.slots_busy) or 0,
        queued=_count(model.queued) or 0,
    )


def _count(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= MAX_COUNT else None


def _one_less(entry: _Entry, model: str) -> None:
    left = entry.ours[model] - 1
    if left > 0:
        entry.ours[model] = left
    else:
        entry.ours.pop(model, None)


def _mean(old: float | None, new: float | None) -> float | None:
    """The moving mean, in three significant digits so that STATUS does not change for noise."""
    if new is None or not 0 < new < 1e9:
        return old
    mean = new if old is None else old + SPEED_WEIGHT * (new - old)
    return float(f"{mean:.3g}")
