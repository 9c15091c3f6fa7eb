"""Keeps what this node serves as it is wanted: the shell around the `Deployment` machines.

It carries out their actions (download, launch, halt, delete), times them, and stores the wish. The
async methods are what a relay may ask for; progress and changes of state go to `on_event`. What
a request needs is a `lease`: it waits while a model loads, and counts for draining and idling. It
knows nothing of sessions and frames.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, assert_never

import anyio
import anyio.abc
import anyio.to_thread

from wai_node.models.catalogue import Quantisation, Repository, parse_reference
from wai_node.models.download import Clock, Download, Progress
from wai_node.models.hardware import Hardware, detect_hardware
from wai_node.models.hub import FoundModel, Hub
from wai_protocol.errors import Fault, NodeUnavailable, RequestError, StoreError, WaiError

from .appraisal import Appraiser, Placed
from .deployment import (
    Action,
    Gone,
    Halt,
    Launch,
    StartDownload,
    State,
    Wish,
)
from .entry import (
    DeploymentStatus,
    Endpoint,
    Entry,
    Event,
    QuantFit,
    endpoint_of,
    files_of,
    listed,
    log_change,
    machine_for,
    pending_bytes,
    read_shape,
    status_of,
    wish_of,
)
from .log_file import read_tail
from .orphans import end_orphans
from .places import Places
from .policy import ManagedSettings
from .runner import Runner
from .wanted import Wanted, WantedModel

log = logging.getLogger("wai.node.managed")

LEASE_LIMIT_S: Final = 600.0  # as long as the relay waits for a first byte
MIN_IDLE_S, MAX_IDLE_S = 1.0, 1e9  # sooner, and it is unloaded before its first request comes
SHOWN_LOG_LINES: Final = 12
MAX_LOG_LINES: Final = 1000
_NAME: Final = re.compile(r"[\w.-]{1,96}")


class Supervisor:
    """All managed models of a node. `run` owns every task and process; the rest asks it.

    `inference_key` is demanded by every server; `hardware` and `now` are inputs for tests.
    """

    def __init__(
        self,
        settings: ManagedSettings,
        hub: Hub,
        inference_key: str,
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        hardware: Callable[[], Hardware] = detect_hardware,
        now: Callable[[], float] = anyio.current_time,
        clock: Clock | None = None,
    ) -> None:
        self.settings, self.hub = settings, hub
        self._key, self._on_event = inference_key, on_event
        self._now, self._clock = now, clock
        self._wanted = Wanted(settings.folder)
        self._places = Places(settings)
        self._appraiser = Appraiser(hub, hardware, self._wanted)
        self._entries: dict[str, Entry] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._placing = anyio.Lock()
        self._changing = anyio.Lock()  # one change of the wanted state at a time

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Bring back what is wanted, and keep it until cancelled; then every server is stopped."""
        await anyio.to_thread.run_sync(end_orphans, self.settings.folder)
        await anyio.to_thread.run_sync(self._wanted.load)
        for model in list(self._wanted.removing.values()):  # a crash came between
            await self._delete_files(model)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for model in self._wanted.models.values():
                self._add(model)
            task_status.started()
            await anyio.sleep_forever()

    # -- what may be asked for

    async def search(self, query: str, limit: int = 20) -> list[FoundModel]:
        """GGUF models on the hub. Raises `WaiError`."""
        return await self.hub.search(query, limit)

    async def fit(
        self, reference: str, context_tokens: int | None = None, slots: int | None = None
    ) -> list[QuantFit]:
        """How each quantisation of `publisher/name[:QUANT]` fits this node. Raises `WaiError`."""
        return await self._appraiser.quantisations(reference, context_tokens, slots)

    async def deploy(
        self,
        reference: str,
        context_tokens: int | None = None,
        slots: int | None = None,
        idle_unload_s: float | None = None,
    ) -> str:
        """Serve `publisher/name[:QUANT]` from now on; returns its alias at once, while it is
        being downloaded. One that is deployed already is changed, or begun again if it failed.

        Raises `WaiError`: not allowed, unknown, gated, does not fit, no room in the quota.
        """
        self.settings.check_allowed()
        if idle_unload_s is not None and not MIN_IDLE_S <= idle_unload_s <= MAX_IDLE_S:
            raise RequestError(f"a model can be unloaded after {MIN_IDLE_S:g} s or more, if asked")
        repo, wanted = parse_reference(reference)
        self.settings.check_publisher(repo)
        repository = await self.hub.repository(repo)
        quant = repository.choose(wanted)
        alias = f"{repo}:{quant.name}"
        if not _NAME.fullmatch(quant.name):
            raise RequestError(f"the file name of {alias[:120]!r} can't be used as a model's id")
        if alias in self._entries:
            if self._entries[alias].removed:
                raise RequestError(f"{alias} is just being removed; deploy it again in a moment")
            await self._again(
                self._entries[alias], repository, quant, context_tokens, slots, idle_unload_s
            )
            return alias
        async with self._placing:  # two at once would both be told that there is room
            if alias in self._entries:
                return alias  # another call was quicker
            placed = await self._place(repository, quant, context_tokens, slots)
            model = WantedModel(
                alias=alias,
                repo=repo,
                quant=quant.name,
                context_tokens=placed.load.context_tokens,
                slots=placed.load.slots,
                idle_unload_s=idle_unload_s,
                gpu_layers=placed.gpu_layers,
                **listed(repository, quant),
            )
            async with self._changing:
                self.settings.check_quota(self._wanted.models.values(), model.size_bytes)
                await anyio.to_thread.run_sync(self._wanted.put, model)
                self._add(model, placed.high_bytes)
        return alias

    def deployed(self) -> list[DeploymentStatus]:
        """Every deployed model."""
        return [status_of(entry) for entry in self._entries.values()]

    async def remove(self, alias: str) -> None:
        """Serve it no more, and delete its files once nothing is being answered with it.

        Raises `RequestError` for an unknown one, `AuthError` where not allowed.
        """
        self.settings.check_allowed()
        entry = self._entry(alias)
        async with self._changing:
            await anyio.to_thread.run_sync(self._wanted.drop, alias)
            entry.removed = True
            if entry.download is not None:
                entry.download.cancel()
            self._apply(entry, entry.machine.remove(self._now()))

    async def set_context(self, alias: str, context_tokens: int, slots: int | None = None) -> None:
        """Serve `alias` with another context without dropping a request; returns at once.

        The new server is started beside the old one where memory allows, else after it. Where the
        new one fails, the old context comes back, and `DeploymentStatus.swap_error` says why.
        """
        self.settings.check_allowed()
        entry = self._entry(alias)
        if entry.machine.state is State.DOWNLOADING:
            raise RequestError(f"{alias} is still being downloaded; change its context after that")
        wish = entry.machine.wish
        model = entry.model
        served = wish if entry.machine.serving is not None else None
        change = await self._appraiser.change(
            model, self._places.file(model), context_tokens, slots or wish.slots, served
        )
        load = change.load
        changed = replace(
            model,
            context_tokens=load.context_tokens,
            slots=load.slots,
            gpu_layers=change.gpu_layers,
        )
        async with self._changing:
            await anyio.to_thread.run_sync(self._wanted.put, changed)
            entry.model = changed
            actions = entry.machine.change(self._wish(changed), self._now(), beside=change.beside)
            if entry.machine.state is State.FAILED:
                actions = [*actions, *entry.machine.deploy()]
            self._apply(entry, actions)

    async def logs(self, alias: str, lines: int = 100) -> list[str]:
        """The last lines that the servers of `alias` printed, over restarts."""
        entry = self._entry(alias)
        count = max(1, min(lines, MAX_LOG_LINES))
        return await anyio.to_thread.run_sync(read_tail, self._places.log(entry.model), count)

    # -- for requests

    def serving(self) -> dict[str, Endpoint]:
        """Where each model that is ready answers now."""
        found = {}
        for alias, entry in self._entries.items():
            endpoint = endpoint_of(entry, entry.machine.serving)
            if endpoint is not None and entry.machine.state is State.READY:
                found[alias] = endpoint
        return found

    @asynccontextmanager
    async def lease(self, alias: str, limit_s: float = LEASE_LIMIT_S) -> AsyncIterator[Endpoint]:
        """Where to send a request for `alias`; hold it until the answer is over.

        Waits while the model loads, wakes it when it was unloaded. Raises `NodeUnavailable` when it
        failed, was removed, or is not ready within `limit_s`.
        """
        entry = self._entry(alias)
        generation = None
        try:
            with anyio.fail_after(limit_s):
                while generation is None:
                    changed = entry.changed
                    generation, actions = entry.machine.lease(self._now())
                    self._apply(entry, actions)
                    if generation is not None:
                        break
                    if entry.removed or entry.machine.state in (State.FAILED, State.ABSENT):
                        why = entry.machine.reason or "it was removed"
                        raise NodeUnavailable(f"{alias} is not served: {why}", Fault.OVERLOADED)
                    await changed.wait()
        except TimeoutError:
            raise NodeUnavailable(
                f"{alias} was not ready within {limit_s:g} s", Fault.UPSTREAM_TIMEOUT
            ) from None
        try:
            endpoint = endpoint_of(entry, generation)
            if endpoint is None:
                raise NodeUnavailable(f"{alias} has just ended", Fault.UPSTREAM_BROKE)
            yield endpoint
        finally:
            self._apply(entry, entry.machine.release(generation, self._now()))

    # -- carrying out

    def _add(self, model: WantedModel, needs_bytes: int = 0) -> None:
        machine = machine_for(model, self.settings.load_timeout_s)
        entry = Entry(model, machine, needs_bytes=needs_bytes)
        self._entries[model.alias] = entry
        self._apply(entry, entry.machine.deploy())
        self._group.start_soon(self._keep_time, entry)

    @property
    def _group(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise RuntimeError("Supervisor.run is not running")
        return self._tasks

    def _apply(self, entry: Entry, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartDownload():
                    self._group.start_soon(self._download, entry)
                case Launch(generation, wish):
                    runner = Runner(self._key, self.settings, self._places.log(entry.model))
                    entry.runners[generation] = runner
                    self._group.start_soon(self._serve, entry, runner, generation, wish)
                case Halt(generation):
                    entry.runners[generation].halt()
                case Gone():
                    entry.gone = True
                    self._group.start_soon(self._delete, entry)
                case _:
                    assert_never(action)
        wish = entry.machine.wish
        served = replace(
            entry.model,
            context_tokens=wish.context_tokens,
            slots=wish.slots,
            gpu_layers=wish.gpu_layers,
        )
        if served != entry.model:  # a swap was taken back: so is what is wanted
            entry.model = served
            self._group.start_soon(self._keep, entry)
        waiting, entry.changed = entry.changed, anyio.Event()
        waiting.set()
        log_change(entry)
        self._on_event(Event("state", status_of(entry)))

    async def _keep_time(self, entry: Entry) -> None:
        """Call the machine when it asked to be called; one task for each deployment."""
        while not entry.gone:
            changed, deadline = entry.changed, entry.machine.next_deadline()
            if deadline is None:
                await changed.wait()
                continue
            with anyio.move_on_after(max(0.0, deadline - self._now())):
                await changed.wait()
                continue
            self._apply(entry, entry.machine.handle_timeout(self._now()))

    async def _download(self, entry: Entry) -> None:
        model = entry.model
        repository = Repository(model.repo, model.commit, gated=False, quantisations=())
        files = files_of(model)

        def tell(progress: Progress) -> None:
            entry.progress = progress
            self._on_event(Event("progress", status_of(entry)))

        download = Download(
            self.hub.transfer,
            lambda file: self.hub.file_url(repository, file),
            files,
            self._places.folder(model),
            tell,
            clock=self._clock,
            kept_free_bytes=self.settings.kept_free_bytes,
        )
        with anyio.CancelScope() as scope:
            entry.download = scope
            try:
                await download.run()
            except WaiError as error:
                may_pass = error.fault in (Fault.UPSTREAM_UNREACHABLE, Fault.UPSTREAM_TIMEOUT)
                actions = entry.machine.download_failed(str(error), self._now(), may_pass=may_pass)
            except Exception:
                log.exception("the download of %s failed", model.alias)
                reason = "the download ended by a fault of the node's; its log says which"
                actions = entry.machine.download_failed(reason, self._now(), may_pass=False)
            else:
                actions = entry.machine.download_done(self._now())
            entry.download = None
            self._apply(entry, actions)

    async def _serve(self, entry: Entry, runner: Runner, generation: int, wish: Wish) -> None:
        """One server from start to end, told to the machine."""

        def on_ready(context_tokens: int) -> None:
            actions = entry.machine.server_ready(generation, context_tokens, self._now())
            self._apply(entry, actions)
            self._group.start_soon(self._learn, entry, runner, wish)

        reason = await runner.run(entry.model, self._places.file(entry.model), wish, on_ready)
        tail = runner.log_tail[-SHOWN_LOG_LINES:]
        actions = entry.machine.server_ended(generation, reason, tail, self._now())
        del entry.runners[generation]
        self._apply(entry, actions)

    async def _learn(self, entry: Entry, runner: Runner, wish: Wish) -> None:
        """Keep how far the estimate was from what the server took."""
        model = replace(entry.model, proven=(wish.context_tokens, wish.slots))
        try:
            shape = await anyio.to_thread.run_sync(read_shape, self._places.file(model))
        except WaiError:
            return  # its file is gone: nothing to learn for
        correction = runner.correction(shape, model.size_bytes, wish)
        if correction is not None:
            factors = (correction.weights, correction.cache, correction.compute)
            model = replace(model, correction=factors)
        entry.model = replace(entry.model, proven=model.proven, correction=model.correction)
        await self._keep(entry)

    async def _keep(self, entry: Entry) -> None:
        """Write down what is known of a model by now. A full disk costs the knowledge, no more."""
        async with self._changing:
            if entry.removed or entry.model.alias not in self._wanted.models:
                return
            try:
                await anyio.to_thread.run_sync(self._wanted.put, entry.model)
            except StoreError as error:
                log.warning("%s", error)

    async def _delete(self, entry: Entry) -> None:
        await self._delete_files(entry.model)
        if self._entries.get(entry.model.alias) is entry:
            del self._entries[entry.model.alias]

    async def _delete_files(self, model: WantedModel) -> None:
        try:
            await anyio.to_thread.run_sync(self._places.delete, model)
        except OSError as error:
            log.warning("%s; it is tried again at the next start", error)
            return
        async with self._changing:
            try:
                await anyio.to_thread.run_sync(self._wanted.deleted, model.alias)
            except StoreError as error:
                log.warning("%s", error)

    async def _again(
        self,
        entry: Entry,
        repository: Repository,
        quant: Quantisation,
        context_tokens: int | None,
        slots: int | None,
        idle_unload_s: float | None,
    ) -> None:
        """A second `deploy` of what is deployed: other settings, or another try."""
        wish = entry.machine.wish
        wanted = context_tokens or wish.context_tokens, slots or wish.slots
        if entry.machine.state is State.FAILED:
            await self._begin_anew(entry, repository, quant, *wanted)
        elif wanted != (wish.context_tokens, wish.slots):
            await self.set_context(entry.model.alias, *wanted)
        if idle_unload_s is not None and idle_unload_s != entry.model.idle_unload_s:
            async with self._changing:
                changed = replace(entry.model, idle_unload_s=idle_unload_s)
                await self._replace(entry, changed)
                self._apply(entry, [])

    async def _begin_anew(
        self, entry: Entry, repository: Repository, quant: Quantisation, context: int, slots: int
    ) -> None:
        """Try a failed one again, with the files that the hub lists now: they may have been what
        was wrong."""
        placed = await self._place(repository, quant, context, slots)
        changed = replace(
            entry.model,
            context_tokens=placed.load.context_tokens,
            slots=placed.load.slots,
            gpu_layers=placed.gpu_layers,
            **listed(repository, quant),
        )
        async with self._changing:
            if entry.machine.state is not State.FAILED:
                return  # it was tried again meanwhile
            others = [m for m in self._wanted.models.values() if m.alias != changed.alias]
            self.settings.check_quota(others, changed.size_bytes)
            await self._replace(entry, changed)
            entry.needs_bytes = placed.high_bytes
            actions = entry.machine.change(self._wish(changed), self._now(), beside=False)
            self._apply(entry, [*actions, *entry.machine.deploy()])

    async def _place(
        self, repository: Repository, quant: Quantisation, context: int | None, slots: int | None
    ) -> Placed:
        """See `Appraiser.new`: the memory of what is on its way is taken."""
        pending = sum(map(pending_bytes, self._entries.values()))
        return await self._appraiser.new(repository, quant, context, slots, pending)

    async def _replace(self, entry: Entry, model: WantedModel) -> None:
        """Want `model` in place of what the entry has; raises where it was removed meanwhile."""
        self._entry(model.alias)
        await anyio.to_thread.run_sync(self._wanted.put, model)
        entry.model = model
        wish = self._wish(model)
        entry.machine.set_times(
            self._now(), idle_unload_s=wish.idle_unload_s, load_limit_s=wish.load_limit_s
        )

    # -- looking things up

    def _entry(self, alias: str) -> Entry:
        entry = self._entries.get(alias)
        if entry is None or entry.removed:
            names = ", ".join(self._entries) or "nothing"
            raise RequestError(
                f"{alias[:120]!r} is not deployed on this node; it has: {names}",
                Fault.MODEL_NOT_FOUND,
            )
        return entry

    def _wish(self, model: WantedModel) -> Wish:
        return wish_of(model, self.settings.load_timeout_s)
