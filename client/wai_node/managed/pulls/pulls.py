"""Deploy models on the inference servers that are there: have them fetch, load and remove them.

This does what the `Supervisor` does for models of the node's own, by a server's `ModelStore`. The
owner's rules are the same (`policy`). A fetch that breaks is tried again, after a restart of the
node too; the server goes on from what it has.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from wai_node.managed.deployment import DOWNLOAD_RETRY_S, State
from wai_node.managed.entry import DeploymentStatus
from wai_node.managed.policy import ManagedSettings
from wai_node.models.download import BACKOFF_FIRST_S, BACKOFF_MAX_S, Clock, Meter, Progress
from wai_node.upstreams.board import Board
from wai_node.upstreams.kinds import UpstreamKinds
from wai_node.upstreams.model_store import Fetched, MayPass, ModelStore, Stored
from wai_node.upstreams.upstream import Upstream
from wai_protocol.errors import Fault, RequestError, TransportError, WaiError

from .pull import Pull
from .pulled import SEPARATOR, PulledModel, PulledModels

log = logging.getLogger("wai.node.managed")

LOOK_EVERY_S: Final = 2.0  # as often as the servers themselves are asked
MAX_TRIES: Final = 10  # in a row without a byte; about five minutes of waits in all
STOP_LIMIT_S: Final = 5.0  # for work that is cancelled to end
HOLD_S: Final = 6.0  # after a model was loaded: three looks, of which one may come late
FIRST_HOLD_S: Final = 30.0  # after the start: servers are found and asked within that


class Pulls:
    """The deployments on servers that are there. All but `deployed` need a running `run`.

    `on_change` gets each change of a status; `tell_failed` the id of a model for callers, with why
    it failed, or None; `touch` is called for a server whose models have changed. `own_bytes`: what
    the node's own models take on the disk.
    """

    def __init__(
        self,
        settings: ManagedSettings,
        board: Board,
        kinds: UpstreamKinds,
        *,
        on_change: Callable[[DeploymentStatus], None] = lambda status: None,
        tell_failed: Callable[[str, str | None], None] = lambda model, reason: None,
        touch: Callable[[Upstream], None] = lambda upstream: None,
        own_bytes: Callable[[], int] = lambda: 0,
        clock: Clock | None = None,
    ) -> None:
        self._settings, self._board = settings, board
        self._kinds = {kind.word: kind for kind in kinds if kind.word}
        self._on_change, self._tell_failed, self._touch = on_change, tell_failed, touch
        self._own_bytes = own_bytes
        self._clock = clock or Clock(random=random.random)
        self._kept = PulledModels(settings.folder)
        self._pulls: dict[str, Pull] = {}
        self._changing = anyio.Lock()
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Go on with what is wanted until cancelled. What was fetched stays with its server."""
        await anyio.to_thread.run_sync(self._kept.load)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for model in self._kept.models.values():
                if model.word not in self._kinds:
                    continue  # of a package that is gone
                pull = self._pulls[model.alias] = self._pull_of(model)
                if model.model:
                    pull.state = State.ASLEEP
                    pull.hold_until = self._clock.now() + FIRST_HOLD_S
                else:
                    self._start(pull, self._fetch)
            task_status.started()
            while True:
                self.look()
                await anyio.sleep(LOOK_EVERY_S)

    # -- what may be asked for

    def takes(self, reference: str) -> bool:
        """Whether `reference` names a model of a server here, as `ollama:qwen3:8b` does."""
        return reference.partition(SEPARATOR)[0] in self._kinds and SEPARATOR in reference

    def deployed(self) -> list[DeploymentStatus]:
        """Every one."""
        return [pull.status() for pull in self._pulls.values()]

    def bytes_on_disk(self, except_for: str = "") -> int:
        """What the models take that were fetched for this node's deployments."""
        found = (pull.model for name, pull in self._pulls.items() if name != except_for)
        return sum(model.size_bytes for model in found if not model.was_there)

    async def deploy(
        self, reference: str, context_tokens: int | None = None, idle_unload_s: float | None = None
    ) -> str:
        """Have a server fetch and load a model; return its alias at once. Raises `WaiError`.

        One that is deployed already is tried again if it failed, and else loaded.
        """
        self._settings.check_allowed()
        word, _, name = reference.partition(SEPARATOR)
        kind = self._kinds[word].kind
        store = self._store(word)
        self._settings.check_publisher(f"{store.publisher(name)}/{name}")
        if context_tokens is not None and not store.takes_context:
            raise RequestError(
                f"the length of a context is {kind}'s own setting; leave --context out, and set it"
                " there"
            )
        if idle_unload_s is not None and not store.takes_idle:
            raise RequestError(
                f"how long a model stays in memory is {kind}'s own setting; leave --idle-unload out"
            )
        async with self._changing:
            model = PulledModel(
                *(word, name), context_tokens=context_tokens, idle_unload_s=idle_unload_s
            )
            known = self._pulls.get(model.alias)
            if known is not None and known.state is State.STOPPING:
                raise RequestError(f"{model.alias} is being removed; deploy it again in a moment")
            if known is not None and known.working:
                return model.alias
            if known is not None:
                if known.scope is not None:  # it waits for its next try
                    known.scope.cancel()
                there = known.model
                model = msgspec.structs.replace(
                    model, model=there.model, size_bytes=there.size_bytes, was_there=there.was_there
                )
            else:
                found = await store.find(name)
                self._check_single(word, found)
                model = msgspec.structs.replace(model, was_there=found is not None)
            await anyio.to_thread.run_sync(self._kept.put, model)
            pull = self._pulls[model.alias] = self._pull_of(model)
            self._start(pull, self._fetch)
            self._changed(pull)
        return model.alias

    async def remove(self, alias: str) -> None:
        """End what is under way, unload the model, and have its server delete it if it was fetched
        for this deployment. Returns once that has begun. Raises `WaiError`."""
        self._settings.check_allowed()
        pull = self.get(alias)
        async with self._changing:
            if pull.scope is not None:
                pull.scope.cancel()
                with anyio.move_on_after(STOP_LIMIT_S):
                    await pull.ended.wait()
            await anyio.to_thread.run_sync(self._kept.drop, alias)
            pull.state, pull.reason = State.STOPPING, ""
            self._start(pull, self._delete)
            self._changed(pull)

    async def retry(self, alias: str) -> None:
        """Try a failed deployment again, now; returns at once. Raises `WaiError`."""
        pull = self.get(alias)
        if pull.state is not State.FAILED:
            raise RequestError(f"{alias} has not failed: it is {pull.state.value}")
        await self.deploy(alias, pull.model.context_tokens, pull.model.idle_unload_s)

    async def load(self, alias: str) -> None:
        """Load a model into memory; returns at once. Raises `WaiError`."""
        self._settings.check_allowed()
        pull = self.get(alias)
        if pull.working or not pull.model.model:
            raise RequestError(f"{alias} is {pull.state.value}; it can be loaded once it is there")
        self._store(pull.model.word)
        self._start(pull, self._load)
        pull.state, pull.reason = State.STARTING, ""
        self._changed(pull)

    async def unload(self, alias: str) -> None:
        """Free a model's memory; a request loads it again. Raises `WaiError`."""
        self._settings.check_allowed()
        pull = self.get(alias)
        if pull.working or not pull.model.model:
            raise RequestError(f"{alias} is {pull.state.value}; there is nothing to unload yet")
        await self._store(pull.model.word).unload(pull.model.model)
        self._touch_server(pull)

    def get(self, alias: str) -> Pull:
        """The deployment of this name. Raises `RequestError`."""
        pull = self._pulls.get(alias)
        if pull is None or pull.state is State.STOPPING:
            names = ", ".join(self._pulls) or "nothing"
            raise RequestError(
                f"{alias[:120]!r} is not deployed on a server of this node; there is: {names}",
                Fault.MODEL_NOT_FOUND,
            )
        return pull

    # -- the work

    def _pull_of(self, model: PulledModel) -> Pull:
        return Pull(model, self._kinds[model.word].kind)

    def _start(self, pull: Pull, work: Callable[[Pull], Awaitable[None]]) -> None:
        if self._tasks is None:
            raise TransportError("this node is starting; try again in a moment")
        pull.scope, pull.ended = anyio.CancelScope(), anyio.Event()
        self._tasks.start_soon(self._work, pull, work, pull.scope, pull.ended)

    async def _work(
        self,
        pull: Pull,
        work: Callable[[Pull], Awaitable[None]],
        scope: anyio.CancelScope,
        ended: anyio.Event,
    ) -> None:
        """Do it; what goes wrong is the deployment's, and ends no other."""
        try:
            with scope:
                await work(pull)
        except WaiError as error:
            pull.fail(str(error))
            log.warning("%s failed: %s", pull.model.alias, error)
        except Exception:
            log.exception("the work on %s failed", pull.model.alias)
            pull.fail("the node failed to do this; its log says why")
        finally:
            if pull.scope is scope:
                pull.scope = None
            ended.set()
        if not scope.cancelled_caught:
            self._changed(pull)

    async def _fetch(self, pull: Pull) -> None:
        """Fetch until it is there or given up, then load it. What is there already costs a look."""
        while True:
            try:
                stored = await self._fetch_with_retries(pull)
                break
            except MayPass as error:
                pull.fail(str(error))
                log.warning("%s failed: %s", pull.model.alias, error)
                self._changed(pull)
            await self._clock.sleep(DOWNLOAD_RETRY_S)
        model = msgspec.structs.replace(
            pull.model, model=stored.model, size_bytes=stored.size_bytes
        )
        await anyio.to_thread.run_sync(self._kept.put, model)
        pull.model, pull.progress = model, None
        log.info("%s is there: callers ask for %s", model.alias, model.model)
        await self._load(pull)

    async def _fetch_with_retries(self, pull: Pull) -> Stored:
        """Have it fetched. Raises `MayPass` after so many tries in a row without a byte."""
        model, tries, most = pull.model, 0, 0
        pull.state, pull.reason = State.DOWNLOADING, ""
        log.info("%s: %s fetches it", model.alias, pull.kind)

        def show(progress: Progress) -> None:
            pull.progress = progress
            self._changed(pull)

        meter = Meter(0, self._clock, show)

        def tell(fetched: Fetched) -> None:
            nonlocal tries, most
            if fetched.done > most:
                tries, pull.reason = 0, ""
            meter.set_total(fetched.total)
            meter.set_done(fetched.done, measured=most > 0)
            most = max(most, fetched.done)
            self._check_quota(model, fetched.total)

        while True:
            try:
                return await self._store(model.word).fetch(model.name, tell)
            except MayPass as error:
                tries += 1
                if tries >= MAX_TRIES:
                    raise
                wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**tries)
                pull.reason = f"{error}; it is tried again"
                self._changed(pull)
            await self._clock.sleep(wait_s * (0.5 + 0.5 * self._clock.random()))

    async def _load(self, pull: Pull) -> None:
        model = pull.model
        pull.state, pull.reason = State.STARTING, ""
        self._changed(pull)
        pull.refused = True
        store = self._store(model.word)
        await store.load(model.model, model.context_tokens, model.idle_unload_s)
        pull.state, pull.refused = State.READY, False
        pull.hold_until = self._clock.now() + HOLD_S
        self._touch_server(pull)

    async def _delete(self, pull: Pull) -> None:
        """Have the server delete it. What it says no to is told in the log: it is its disk."""
        model, word = pull.model, pull.model.word
        try:
            store = self._store(word)
            found = model.model or (
                stored.model if (stored := await store.find(model.name)) else ""
            )
            if found and not model.was_there:
                await store.remove(found)
            elif found:
                await store.unload(found)
        except WaiError as error:
            log.warning("%s is no deployment any more, but its files stay: %s", model.alias, error)
        self._touch_server(pull)
        if self._pulls.get(model.alias) is pull:
            del self._pulls[model.alias]
        pull.state = State.ABSENT

    def _check_single(self, word: str, found: Stored | None) -> None:
        """Raise `RequestError` for a model that is deployed by another of its names."""
        for pull in self._pulls.values():
            if found is not None and (pull.model.word, pull.model.model) == (word, found.model):
                raise RequestError(f"{found.model} is deployed already, as {pull.model.alias}")

    def _check_quota(self, model: PulledModel, total_bytes: int) -> None:
        """Raise `StoreError` for a model that takes more than the owner allows."""
        if not model.was_there:
            used = self.bytes_on_disk(except_for=model.alias) + self._own_bytes()
            self._settings.check_quota((), total_bytes, used)

    # -- the servers

    def _server(self, word: str) -> Upstream | None:
        kind = self._kinds[word]
        there = [u for u in self._board.upstreams if isinstance(u, kind) and self._board.up(u)]
        return there[0] if there else None

    def _store(self, word: str) -> ModelStore:
        """The store of a server of this kind that answers. Raises `MayPass` if none does."""
        server = self._server(word)
        store = server.store() if server is not None else None
        if store is None:
            raise MayPass(
                f"no {self._kinds[word].kind} answers on this node; start it, or name it by"
                " --upstream URL"
            )
        return store

    def _touch_server(self, pull: Pull) -> None:
        if (server := self._server(pull.model.word)) is not None:
            self._touch(server)

    def look(self) -> None:
        """Take the servers' last word of each deployment. `run` does so from time to time."""
        active, now = self._board.active(), self._clock.now()
        for pull in list(self._pulls.values()):
            server = self._server(pull.model.word)
            told = self._board.models(server) if server is not None else None
            seen = next((one for one in told or () if one.id == pull.model.model), None)
            mine = active.get(server.name, {}) if server is not None else {}
            pull.see(seen, mine.get(pull.model.model, 0), now, up=told is not None)
            self._changed(pull)

    def _changed(self, pull: Pull) -> None:
        """Tell of a change, if there is one."""
        status = pull.status()
        if status == pull.told:
            return
        pull.told = status
        model = pull.model.model or pull.model.name
        self._tell_failed(model, status.reason if status.given_up else None)
        self._on_change(status)
