"""Moves the deployed models to another engine, and back if it does not come up.

Each model is moved as its context is changed: the new server loads beside the old one if there is
memory for both, else after it, and no request is dropped. One model after another, so that two
never count the same free memory. An engine is on trial until a model was served by it; if one
can't be, the node goes back to the engine of before. Who chooses an engine writes it down
(`wai node engine use`, an install for a deployment); this follows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
from msgspec.structs import replace

from wai_protocol.errors import StoreError, WaiError

from .appraisal import Appraiser
from .deployment import Action, State
from .deployments import Deployments
from .engine import NodeEngine
from .entry import DeploymentEntry, until_ended
from .server.model_paths import ModelPaths

log = logging.getLogger("wai.node.managed")

LOOK_EVERY_S: Final = 1.0  # a stat of one file; who runs `wai node engine use` waits for it


class EngineSwaps:
    """Follows the engine that is chosen. Run `run` as a part of the node."""

    def __init__(
        self,
        engine: NodeEngine,
        deployments: Deployments,
        appraiser: Appraiser,
        places: ModelPaths,
        apply: Callable[[DeploymentEntry, list[Action]], None],
        now: Callable[[], float],
    ) -> None:
        self._engine, self._deployments, self._appraiser = engine, deployments, appraiser
        self._places, self._apply, self._now = places, apply, now
        self._news = anyio.Event()
        self._served = False
        self._broke = ""
        self._tried: set[str] = set()  # the models that were asked to move to the engine of now

    def observe(self, entry: DeploymentEntry) -> None:
        """Take notice of a model's machine, which may have changed."""
        machine, argv = entry.machine, self._engine.argv
        if not self._engine.state.on_trial or entry.model.server:
            return  # this is called at each request
        on_it = machine.wish.engine == argv
        if on_it and machine.state is State.READY and not machine.changing:
            self._served = True
            self._news.set()
        elif not on_it and machine.swap_error:
            self._broke = machine.swap_error
            self._news.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            if self._engine.is_stale and await self._engine.look():
                self._served, self._broke = False, ""
                self._tried.clear()
            await self._move_all()
            await self._judge()
            if self._engine.is_stale:
                continue
            self._news = anyio.Event()
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._news.wait()

    async def _judge(self) -> None:
        """Write down whether the engine on trial came up; go back if it did not."""
        served, broke = self._served, self._broke
        self._served, self._broke = False, ""
        if not self._engine.state.on_trial or not (served or broke):
            return
        try:
            if served:
                await self._engine.came_up()
            else:
                await self._engine.go_back(broke)
        except StoreError as error:
            log.warning("%s", error)

    async def _move_all(self) -> None:
        """Move the models that another engine serves, or none, to the one of now."""
        argv = self._engine.argv
        for entry in list(self._deployments):
            machine = entry.machine
            moved = machine.wish.engine == argv or entry.model.alias in self._tried
            if entry.model.server or not argv or moved or entry.removed or machine.changing:
                continue
            self._tried.add(entry.model.alias)  # one that can't be moved stays where it is
            await self._move(entry, argv)
            with anyio.move_on_after(machine.wish.load_limit_s):
                while machine.changing:
                    await entry.changed.wait()
            if self._broke and not self._served:
                return

    async def _move(self, entry: DeploymentEntry, argv: tuple[str, ...]) -> None:
        await until_ended(entry)
        machine, model = entry.machine, entry.model
        wish, beside = replace(machine.wish, engine=argv), False
        if machine.state is not State.DOWNLOADING:
            served = machine.wish if machine.serving is not None else None
            try:
                change = await self._appraiser.change(
                    model,
                    self._places.files(model),
                    wish.context_tokens,
                    wish.slots,
                    wish.options,
                    served,
                )
            except WaiError as error:
                log.warning("%s is not moved to the new engine: %s", model.alias, error)
                machine.swap_error = f"it is not moved to the new engine: {error}"
                return
            wish, beside = replace(wish, placement=change.placement), change.beside
        async with self._deployments.changing:
            if entry.removed or entry.machine.wish.engine == argv:
                return
            told = machine.swap_error
            actions = machine.change(wish, self._now(), beside=beside)
            machine.swap_error = told  # on any engine it is served otherwise than its owner asked
            if machine.state is State.FAILED:
                actions = [*actions, *machine.deploy()]
            self._apply(entry, actions)
