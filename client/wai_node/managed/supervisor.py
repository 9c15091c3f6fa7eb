"""The interface to a node's managed models: deploy, change, remove, and lease for a request.

The async methods check what a relay asks for, store it, and give it to the `Keeper`, which carries
it out; progress and changes of state are reported to `on_event`. A request uses `lease`. This
module knows nothing of sessions and frames.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread
from msgspec import UNSET
from msgspec.structs import replace

from wai_node.models.catalogue import Quantisation, Repository
from wai_node.models.download import Clock
from wai_node.models.hardware import Hardware, detect_hardware
from wai_node.models.hub import FoundModel, Hub
from wai_node.models.placement import Placement
from wai_node.models.projector import NO_PROJECTOR
from wai_node.supervision import Supervision
from wai_protocol.errors import RequestError, TransportError

from .adapters import Adapters, remote_file
from .appraisal import Appraiser, NewModel, Placed, alias_of, reference_to
from .deployment import State, Wish
from .deployments import Deployments
from .engine import EngineState, NodeEngine
from .engine_swap import EngineSwaps
from .entry import (
    DeploymentEntry,
    DeploymentEvent,
    DeploymentStatus,
    Held,
    QuantFit,
    ServerAccess,
    endpoint_of,
    hub_fields,
    status_of,
    until_ended,
    wish_of,
)
from .keeper import Keeper
from .lease import leased
from .load_policy import DEFAULT_POLICY, LoadPolicy
from .options import DEFAULT, ServeOptions
from .policy import ManagedSettings
from .room import Room
from .server.log_file import read_tail
from .server.model_paths import ModelPaths
from .server.vllm import SERVER, check_vllm
from .vllm_appraisal import VllmAppraiser
from .wanted import AddedFile, Wanted, WantedModel

log = logging.getLogger("wai.node.managed")

LEASE_LIMIT_S: Final = 600.0  # as long as the relay waits for a first byte
MAX_LOG_LINES: Final = 1000
_NAME: Final = re.compile(r"[\w.-]{1,96}")


class Supervisor:
    """All managed models of a node. The other methods need a running `run`.

    `new_key` returns a new inference key, one for each start of a server. Tests replace
    `hardware`, `engine` and `now`. `parts` reports the deployments whose timing has failed, and
    `on_engine` gets what is known of the engine that serves the models.
    """

    def __init__(
        self,
        settings: ManagedSettings,
        hub: Hub,
        new_key: Callable[[], str],
        on_event: Callable[[DeploymentEvent], None] = lambda event: None,
        *,
        hardware: Callable[[], Hardware] = detect_hardware,
        now: Callable[[], float] = anyio.current_time,
        clock: Clock | None = None,
        parts: Supervision | None = None,
        on_engine: Callable[[EngineState], None] = lambda state: None,
        engine: NodeEngine | None = None,
    ) -> None:
        self.settings, self.hub = settings, hub
        self._now = now
        self._parts = parts or Supervision()
        self._wanted = Wanted(settings.folder)
        self._deployments = Deployments(self._wanted)
        self._places = ModelPaths(settings)
        self._engine = engine or NodeEngine(settings, on_engine, clock=clock)
        usable = self._engine.usable

        def machine() -> Hardware:
            return usable(hardware())

        vllm = VllmAppraiser(hardware)
        self._appraiser = Appraiser(hub, settings, machine, self._deployments, vllm)
        self._room = Room(self._deployments, hardware, self._held_by, now)
        self._adapters = Adapters(hub, settings)
        self._keeper = Keeper(
            *(settings, hub, new_key, self._deployments, on_event),
            now=now,
            clock=clock,
            parts=self._parts,
            engine=self._engine,
            room=self._room,
            place=self._placed_now,
        )
        self._swaps = EngineSwaps(
            *(self._engine, self._deployments, self._appraiser, self._places),
            *(self._keeper.apply, now),
        )
        self._keeper.observe = self._swaps.observe
        self._placing = anyio.Lock()
        self.other_bytes: Callable[[], int] = lambda: 0
        """What else counts against the owner's quota of the disk."""

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Bring back what is wanted, and keep it until cancelled; then every server is stopped."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._keeper.run)
            tasks.start_soon(self._parts.keep, "engine", self._swaps.run)
            tasks.start_soon(self._parts.keep, "memory", self._room.run)
            task_status.started()

    # -- what may be asked for

    async def search(self, query: str, limit: int = 20) -> list[FoundModel]:
        """Search the hub for GGUF models, with this node's token. Raises `WaiError`."""
        self.settings.check_allowed()
        return await self.hub.search(query, limit)

    async def fit(
        self,
        reference: str,
        context_tokens: int | None = None,
        slots: int | None = None,
        options: ServeOptions = DEFAULT,
        policy: LoadPolicy = DEFAULT_POLICY,
    ) -> list[QuantFit]:
        """Return how each quantisation of `publisher/name[:QUANT]` fits this node.

        Deployed models make room for it as `policy` says. The hub is asked with this node's token.
        Raises `WaiError`.
        """
        self.settings.check_allowed()
        return await self._appraiser.quantisations(
            reference, context_tokens, slots, options, policy
        )

    async def deploy(
        self,
        reference: str,
        context_tokens: int | None = None,
        slots: int | None = None,
        idle_unload_s: float | None = None,
        *,
        load: str | None = None,
        priority: int | None = None,
        options: ServeOptions | None = None,
        mmproj: str | None = None,
        lora: str | None = None,
        draft: str | None = None,
        install_engine: bool = False,
    ) -> str:
        """Begin to serve `publisher/name[:QUANT]`, or a file of this node's such as `./NAME.gguf`;
        return its alias at once, before the download.

        A model that is deployed already is changed to the new settings, or tried again if it
        failed. `load`, `idle_unload_s` and `priority`: when it is in memory, as `LoadPolicy` says.
        `mmproj`: the projector by which it sees images, None: the best one, "none": none.
        `lora`: an adapter that is added to its weights, as publisher/name[:QUANT] or ./FILE.gguf.
        `draft`: a small model that drafts for it, named alike, None: the repository's own if it has
        one, "none": none.
        `install_engine`: if there is no engine, install one before the download. Raises
        `WaiError`: not allowed, unknown, gated, does not fit, over the quota, no engine.
        """
        self.settings.check_allowed()
        self._keeper.check_running()
        idle_s = UNSET if idle_unload_s is None else idle_unload_s
        policy = DEFAULT_POLICY.changed(load, priority, idle_s)
        self.settings.check_options(options or DEFAULT)
        repository, wanted = await self._appraiser.repository(reference)
        repo, quant = repository.name, repository.choose(wanted)
        alias = alias_of(repository, quant)
        if not _NAME.fullmatch(quant.name):
            raise RequestError(f"the file name of {alias[:120]!r} can't be used as a model's id")
        vllm = repository.config is not None
        if vllm:
            alias = repo
            check_vllm(options or DEFAULT, mmproj or lora or draft)
        else:
            await self._engine.check(install=install_engine)
        entry = self._deployments.find(alias)
        if entry is not None:
            if entry.removed:
                raise RequestError(f"{alias} is being removed; deploy it again in a moment")
            if lora is not None or draft is not None:
                what = "adapter" if lora is not None else "draft model"
                raise RequestError(
                    f"{alias} is deployed already; remove it, and deploy it again with the {what}"
                )
            policy = entry.model.policy.changed(load, priority, idle_s)
            await self._redeploy(
                *(entry, repository, quant, context_tokens, slots, policy, options, mmproj)
            )
            return alias
        self._deployments.check_alias(alias, (options or DEFAULT).alias)
        async with self._placing:  # two at once would both count the same free memory
            if self._deployments.find(alias) is not None:
                return alias  # another call was quicker
            chosen = options or DEFAULT
            adapter, counted = None, quant
            if lora is not None:
                shape = await self._appraiser.shape(repository, quant)
                adapter = await self._adapters.find(lora, shape)
                counted = replace(quant, files=(*quant.files, remote_file(adapter)))
            wanted_so = repository, counted, context_tokens, slots, chosen, policy, mmproj
            placed, drafting = await self._placed(wanted_so, draft)
            model = WantedModel(
                lora=adapter,
                draft=drafting,
                options=chosen,
                purpose=placed.purpose,
                mmproj=placed.mmproj,
                alias=alias,
                repo=repo,
                quant=quant.name,
                context_tokens=placed.load.context_tokens,
                slots=placed.load.slots,
                load=policy.load,
                idle_unload_s=policy.idle_unload_s,
                priority=policy.priority,
                placement=placed.placement,
                gpu_share=placed.gpu_share,
                server=SERVER if vllm else "",
                **hub_fields(repository, quant),
            )
            async with self._deployments.changing:
                others = self._wanted.models.values()
                self.settings.check_quota(others, model.size_bytes, self.other_bytes())
                await anyio.to_thread.run_sync(self._wanted.put, model)
                self._keeper.add(model, placed.needs)
        return alias

    def deployed(self) -> list[DeploymentStatus]:
        """Every deployed model."""
        return [status_of(entry) for entry in self._deployments]

    def bytes_on_disk(self) -> int:
        """Return what the files of the deployed models take, or will take."""
        return sum(model.size_bytes for model in self._wanted.models.values())

    async def remove(self, alias: str) -> None:
        """Stop serving a model, and delete its files once its open requests have finished.

        Raises `RequestError` if it is not deployed, `AuthError` if the owner forbids changes.
        """
        self.settings.check_allowed()
        self._keeper.check_running()
        entry = self._deployments.get(alias)
        async with self._deployments.changing:
            await anyio.to_thread.run_sync(self._wanted.drop, alias)
            entry.removed = True
            if entry.download is not None:
                entry.download.cancel()
            self._keeper.apply(entry, entry.machine.remove(self._now()))

    async def edit(
        self,
        alias: str,
        context_tokens: int | None = None,
        slots: int | None = None,
        options: ServeOptions | None = None,
    ) -> None:
        """Serve `alias` otherwise, without dropping a request; returns at once. None: as now.

        The new server starts while the old one runs if there is memory for both, else after it. If
        the new one fails, the old way is restored and `DeploymentStatus.swap_error` says why.
        """
        self.settings.check_allowed()
        await until_ended(self._deployments.get(alias))
        entry = self._deployments.get(alias)
        if entry.machine.state is State.DOWNLOADING:
            raise RequestError(f"{alias} is still being downloaded; change it after that")
        wish = entry.machine.wish
        model = entry.model
        chosen = options or wish.options
        self.settings.check_options(chosen)
        self._deployments.check_alias(alias, chosen.alias)
        context_tokens, slots = context_tokens or wish.context_tokens, slots or wish.slots
        asked = replace(wish, context_tokens=context_tokens, slots=slots, options=chosen)
        if asked != wish and asked == wish.renamed(chosen.alias):
            await self._rename(entry, chosen.alias)
            return
        if model.server:
            check_vllm(chosen, None)
        files = self._places.files(model)
        reference = reference_to(model) if entry.machine.state is State.FAILED else None
        if reference is not None and not await anyio.to_thread.run_sync(files.model.exists):
            await self.deploy(reference, context_tokens, slots, options=options)
            return  # its download had failed: it is tried again, and served as is wanted now
        served = wish if entry.machine.serving is not None else None
        change = await self._appraiser.change(model, files, context_tokens, slots, chosen, served)
        load = change.load
        changed = replace(
            model,
            context_tokens=load.context_tokens,
            slots=load.slots,
            placement=change.placement,
            gpu_share=change.gpu_share,
            options=chosen,
        )
        async with self._deployments.changing:
            await anyio.to_thread.run_sync(self._wanted.put, changed)
            entry.model = changed
            actions = entry.machine.change(self._wish(changed), self._now(), beside=change.beside)
            if entry.machine.state is State.FAILED:
                actions = [*actions, *entry.machine.deploy()]
            self._keeper.apply(entry, actions)

    async def retry(self, alias: str) -> None:
        """Try a failed deployment again, now; returns at once.

        With the files that the hub lists now, or with those that are here where the hub does not
        answer. Raises `WaiError`: it has not failed, or the owner forbids changes.
        """
        self.settings.check_allowed()
        self._keeper.check_running()
        entry = self._deployments.get(alias)
        if entry.removed or entry.machine.state is not State.FAILED:
            state = "being removed" if entry.removed else entry.machine.state.value
            raise RequestError(f"{alias} has not failed: it is {state}")
        if (reference := reference_to(entry.model)) is not None:
            try:
                await self.deploy(reference)
                return
            except TransportError as error:
                log.info("%s is tried again without the hub: %s", alias, error)
        async with self._deployments.changing:
            self._keeper.apply(entry, entry.machine.deploy())

    def options_of(self, alias: str) -> ServeOptions:
        """Return the options that a model is served with, or is to be. Raises `RequestError`."""
        return self._deployments.get(alias).machine.wish.options

    def policy_of(self, alias: str) -> LoadPolicy:
        """Return when a model is in memory. Raises `RequestError`."""
        return self._deployments.get(alias).model.policy

    async def set_policy(self, alias: str, policy: LoadPolicy) -> None:
        """Have `alias` in memory as `policy` says, without a restart of its server.

        Raises `WaiError`.
        """
        self.settings.check_allowed()
        entry = self._deployments.get(alias)
        if policy != entry.model.policy:
            async with self._deployments.changing:
                await self._replace(
                    entry,
                    replace(
                        entry.model,
                        load=policy.load,
                        idle_unload_s=policy.idle_unload_s,
                        priority=policy.priority,
                    ),
                )
                self._keeper.apply(entry, [])

    def load(self, alias: str) -> None:
        """Begin to load a model that is not in memory, though no request asks for it.

        Raises `WaiError`.
        """
        self.settings.check_allowed()
        entry = self._deployments.get(alias)
        if entry.machine.state is State.FAILED:
            raise RequestError(f"{alias} has failed; `wai model deploy` tries it again")
        entry.asked_to_load = entry.machine.state is State.ASLEEP
        self._keeper.apply(entry, entry.machine.wake(self._now()))

    def unload(self, alias: str) -> None:
        """Free the memory of a model that is loaded on demand. Raises `WaiError`."""
        self.settings.check_allowed()
        entry = self._deployments.get(alias)
        machine = entry.machine
        if machine.state is State.ASLEEP:
            return
        if not machine.wish.on_demand:
            raise RequestError(
                f"{alias} is kept loaded; `wai model edit --load on-demand` lets it be unloaded"
            )
        if machine.in_flight or not machine.can_unload:
            what = "has requests in progress" if machine.in_flight else f"is {machine.state.value}"
            raise RequestError(f"{alias} {what}; unload it after that")
        self._keeper.apply(entry, machine.unload())

    async def logs(self, alias: str, lines: int = 100) -> list[str]:
        """Return the last lines that the servers of `alias` printed, including earlier runs."""
        entry = self._deployments.get(alias)
        count = max(1, min(lines, MAX_LOG_LINES))
        return await anyio.to_thread.run_sync(read_tail, self._places.log(entry.model), count)

    def processes(self) -> dict[int, str]:
        """Return the models of the servers that run now, by process id."""
        return {
            runner.pid: entry.model.alias
            for entry in self._deployments
            for runner in entry.runners.values()
            if runner.pid is not None
        }

    # -- for requests

    def serving(self) -> dict[str, ServerAccess]:
        """Return the endpoint of each model that is ready."""
        found = {}
        for entry in self._deployments:
            endpoint = endpoint_of(entry, entry.machine.serving)
            if endpoint is not None and entry.machine.state is State.READY:
                found[entry.model.alias] = endpoint
        return found

    @asynccontextmanager
    async def lease(
        self, alias: str, limit_s: float = LEASE_LIMIT_S
    ) -> AsyncIterator[ServerAccess]:
        """Hold a lease on `alias`, and yield the endpoint to send the request to.

        Waits while the model loads, and loads it if it was unloaded. Raises `NodeUnavailable` if it
        failed, was removed, or is not ready within `limit_s` seconds.
        """
        async with leased(
            self._deployments.get(alias), self._keeper.apply, self._now, limit_s
        ) as endpoint:
            yield endpoint

    async def _placed(self, wanted: NewModel, draft: str | None) -> tuple[Placed, AddedFile | None]:
        """Return where a new model goes, with its draft model. One that its repository offers is
        left out if there is no room for it."""
        repository, quant = wanted[0], wanted[1]
        found = None
        if repository.config is None and (draft or repository.drafts):
            found = await self._adapters.find_draft(draft, repository, quant)
        if found is None:
            return await self._appraiser.new(*wanted), None
        try:
            return await self._appraiser.new(*wanted, found[1]), found[0]
        except RequestError:
            if draft is not None:
                raise
            return await self._appraiser.new(*wanted), None

    # -- a second `deploy` of the same model

    async def _redeploy(
        self,
        entry: DeploymentEntry,
        repository: Repository,
        quant: Quantisation,
        context_tokens: int | None,
        slots: int | None,
        policy: LoadPolicy,
        options: ServeOptions | None,
        mmproj: str | None,
    ) -> None:
        """Change the settings of a deployed model, or try again if it failed."""
        wish = entry.machine.wish
        await self.set_policy(entry.model.alias, policy)
        chosen = options or wish.options
        wanted = context_tokens or wish.context_tokens, slots or wish.slots, chosen
        if entry.machine.state is State.FAILED:
            await self._retry_failed(entry, repository, quant, *wanted, mmproj)
        else:
            _check_projector(entry.model, mmproj)
            if wanted != (wish.context_tokens, wish.slots, wish.options):
                await self.edit(entry.model.alias, *wanted)

    async def _retry_failed(
        self,
        entry: DeploymentEntry,
        repository: Repository,
        quant: Quantisation,
        context: int,
        slots: int,
        options: ServeOptions,
        mmproj: str | None,
    ) -> None:
        """Try a failed deployment again, with the files that the hub lists now, in case the old
        ones were the cause."""
        kept = None if entry.model.mmproj is None else entry.model.mmproj[0]
        mmproj = mmproj or kept or NO_PROJECTOR
        placed = await self._appraiser.new(
            *(repository, quant, context, slots, options, entry.model.policy, mmproj),
            await self._adapters.draft_of(entry.model.draft),
        )
        changed = replace(
            entry.model,
            options=options,
            purpose=placed.purpose,
            mmproj=placed.mmproj,
            context_tokens=placed.load.context_tokens,
            slots=placed.load.slots,
            placement=placed.placement,
            gpu_share=placed.gpu_share,
            **hub_fields(repository, quant),
        )
        async with self._deployments.changing:
            if entry.machine.state is not State.FAILED:
                return  # it was tried again meanwhile
            others = [m for m in self._wanted.models.values() if m.alias != changed.alias]
            self.settings.check_quota(others, changed.size_bytes, self.other_bytes())
            await self._replace(entry, changed)
            entry.needs = placed.needs
            actions = entry.machine.change(self._wish(changed), self._now(), beside=False)
            self._keeper.apply(entry, [*actions, *entry.machine.deploy()])

    async def _held_by(self, entry: DeploymentEntry, wish: Wish) -> Held:
        """Return what a server takes in memory that serves a deployment by `wish`."""
        model = entry.model
        return await self._appraiser.held_by(model, self._places.files(model), wish)

    async def _placed_now(self, entry: DeploymentEntry, wish: Wish) -> Placement | None:
        """Return where a server's layers go that is to be started."""
        model = entry.model
        return await self._appraiser.place(model, self._places.files(model), wish)

    async def _rename(self, entry: DeploymentEntry, alias: str) -> None:
        """Give a deployment another second name: a name needs no other server."""
        async with self._deployments.changing:
            self._deployments.get(entry.model.alias)
            model = replace(
                entry.model,
                options=replace(entry.model.options, alias=alias),
                proven_options=replace(entry.model.proven_options, alias=alias),
            )
            await anyio.to_thread.run_sync(self._wanted.put, model)
            entry.model = model
            entry.machine.rename(alias)
            self._keeper.apply(entry, [])

    async def _replace(self, entry: DeploymentEntry, model: WantedModel) -> None:
        """Store `model` in place of the entry's. Raises if it was removed meanwhile."""
        self._deployments.get(model.alias)
        await anyio.to_thread.run_sync(self._wanted.put, model)
        entry.model = model
        wish = self._wish(model)
        entry.machine.set_times(
            self._now(),
            idle_unload_s=wish.idle_unload_s,
            load_limit_s=wish.load_limit_s,
            on_demand=wish.on_demand,
        )

    def _wish(self, model: WantedModel) -> Wish:
        return wish_of(model, self.settings.load_timeout_s, self._engine.argv)


def _check_projector(model: WantedModel, wanted: str | None) -> None:
    """Raise `RequestError` if a served model is to get another projector."""
    now = model.mmproj[0].rsplit("/", 1)[-1] if model.mmproj else NO_PROJECTOR
    if wanted is not None and wanted.lower() != now.lower():
        raise RequestError(
            f"{model.alias} is served with the projector {now}; remove it, and deploy it again with"
            " another one"
        )
