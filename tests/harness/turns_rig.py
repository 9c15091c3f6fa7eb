"""A made-up box on a fake clock, whose models take turns by the rule of `wai_node.managed.turns`.

Requests come, wait, are answered; loads and unloads take their time. What the rule promises is
checked at each step.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wai_node.managed.turns import Seat, Stage, Turns
from wai_node.models.space import NOTHING, Space


@dataclass
class Model:
    """A deployment of the made-up box. `waiting`: when those came that wait for it."""

    name: str
    needs: Space
    load_s: float = 8.0
    slots: int = 4
    priority: int = 0
    kept: bool = False
    stage: Stage = Stage.OUT
    since: float = 0.0
    used_at: float = 0.0
    busy: int = 0
    closed: bool = False
    waiting: list[float] = field(default_factory=list)
    loads: int = 0


class Box:
    """Its models, memory and clock. `work_s` draws how long an answer takes."""

    def __init__(
        self,
        models: list[Model],
        memory: Space,
        turns: Turns | None = None,
        work_s: Callable[[], float] = lambda: 1.0,
        unload_s: float = 0.5,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.memory, self.turns = memory, turns or Turns()
        self.work_s, self.unload_s = work_s, unload_s
        self.now = 0.0
        self.waits: list[float] = []
        self.blocked: dict[str, str] = {}
        self._then: dict[str, list[Callable[[], None]]] = {name: [] for name in self.models}
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (when, next(self._order), act, arguments))

    def ask(self, name: str, then: Callable[[], None] = lambda: None) -> None:
        """A request comes; `then` once it was answered."""
        model = self.models[name]
        model.waiting.append(self.now)
        self._then[name].append(then)
        if model.stage is Stage.OUT:
            model.stage, model.since = Stage.WANTED, self.now
        self._serve(model)

    def run(self, until: float) -> None:
        """Let things happen until then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
            self.decide()
        self.now = until

    def want(self, name: str) -> None:
        """A model is wanted without a request."""
        model = self.models[name]
        if model.stage is Stage.OUT:
            model.stage, model.since = Stage.WANTED, self.now

    def seats(self) -> list[Seat]:
        """The box as the rule sees it."""
        return [
            Seat(
                *(m.name, m.stage, m.needs, m.priority, m.kept, m.busy, m.since),
                self.now if m.busy else m.used_at,
                m.load_s,
            )
            for m in self.models.values()
        ]

    def decide(self) -> None:
        """Ask the rule, and do what it says."""
        held = [m for m in self.models.values() if m.stage not in (Stage.OUT, Stage.WANTED)]
        free = self.memory - sum((m.needs for m in held), NOTHING)
        plan = self.turns.decide(self.seats(), free, self.now)
        for name in plan.unload:
            model = self.models[name]
            assert model.stage is Stage.LOADED
            assert not model.busy, "a busy model was stopped"
            model.stage = Stage.LEAVING
            self.at(self.now + self.unload_s, self._left, model)
        for model in self.models.values():
            if model.closed and model.name not in plan.close:
                model.closed = False
                self._serve(model)
            model.closed = model.name in plan.close
        for name in plan.load:
            model = self.models[name]
            assert model.stage is Stage.WANTED
            model.stage, model.loads = Stage.LOADING, model.loads + 1
            free -= model.needs
            self.at(self.now + model.load_s, self._loaded, model)
        if plan.load and len(held) + len(plan.load) > 1:
            assert free.gpu >= 0, "memory was oversubscribed"
            assert free.ram >= 0, "memory was oversubscribed"
        self.blocked = plan.blocked
        if plan.again_at is not None:
            assert plan.again_at > self.now, "it would be asked again for ever"
            self.at(plan.again_at, lambda: None)

    def _serve(self, model: Model) -> None:
        while model.stage is Stage.LOADED and not model.closed and model.waiting:
            if model.busy >= model.slots:
                return
            self.waits.append(self.now - model.waiting.pop(0))
            model.busy += 1
            self.at(self.now + self.work_s(), self._done, model, self._then[model.name].pop(0))

    def _done(self, model: Model, then: Callable[[], None]) -> None:
        model.busy -= 1
        model.used_at = self.now
        then()
        self._serve(model)

    def _loaded(self, model: Model) -> None:
        model.stage, model.since, model.used_at = Stage.LOADED, self.now, self.now
        self._serve(model)

    def _left(self, model: Model) -> None:
        model.stage = Stage.OUT
        if model.waiting or model.kept:
            model.stage, model.since = Stage.WANTED, self.now


def callers(box: Box, names: list[str], count: int, think_s: float, seed: int = 1) -> None:
    """`count` callers, each of one of the models, who ask again a while after each answer."""
    dice = random.Random(seed)

    def ask(name: str) -> None:
        box.ask(name, lambda: box.at(box.now + dice.expovariate(1 / think_s), ask, name))

    for number in range(count):
        box.at(dice.random() * think_s, ask, names[number % len(names)])
