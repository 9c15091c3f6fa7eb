"""The I/O around the `Deployment` state machines: carry out their actions and keep their time.

The actions are to download, start or stop a server, and delete files. The keeper owns every task
and process. It decides nothing: the `Supervisor` says what to serve, the machines what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

import anyio
import anyio.abc
import anyio.to_thread
from msgspec.structs import replace

from wai_node.models.catalogue import RemoteFile, Repository
from wai_node.models.download import Clock, Download, Progress
from wai_node.models.estimate import Correction
from wai_node.models.hub import Hub
from wai_node.models.local_files import check_local
from wai_node.models.placement import Placement
from wai_node.models.space import NOTHING, Space
from wai_node.supervision import Supervision
from wai_protocol.errors import Fault, NodeUnavailable, WaiError

from .adapters import remote_file, repository_of
from .appraisal import layout_of_files, read_load
from .deployment import Action, DeleteFiles, Halt, Launch, StartDownload, Wish
from .deployments import Deployments
from .engine import NodeEngine
from .entry import (
    DeploymentEntry,
    DeploymentEvent,
    files_of,
    log_change,
    machine_for,
    status_of,
)
from .policy import ManagedSettings
from .room import Room
from .server.model_paths import ModelPaths
from .server.orphans import end_orphans
from .server.runner import Runner
from .server.server_socket import remove_left_sockets
from .wanted import AddedFile, WantedModel

log = logging.getLogger("wai.node.managed")

SHOWN_LOG_LINES: Final = 12

Place = Callable[[DeploymentEntry, Wish], Awaitable[Placement | None]]


class Keeper:
    """Runs the servers and downloads of `deployments`; reports progress and changes to `on_event`.

    `place` says where a server's layers go now. `new_key` returns a new inference key, one for each
    start of a server. `observe` is called for each machine that may have changed.
    """

    def __init__(
        self,
        settings: ManagedSettings,
        hub: Hub,
        new_key: Callable[[], str],
        deployments: Deployments,
        on_event: Callable[[DeploymentEvent], None],
        *,
        now: Callable[[], float],
        clock: Clock | None,
        parts: Supervision,
        engine: NodeEngine,
        room: Room,
        place: Place,
    ) -> None:
        self.observe: Callable[[DeploymentEntry], None] = lambda entry: None
        self._engine, self._room, self._place = engine, room, place
        room.apply = self.apply
        self._settings, self._hub, self._new_key = settings, hub, new_key
        self._deployments, self._on_event = deployments, on_event
        self._now, self._clock = now, clock
        self._parts = parts
        self._places = ModelPaths(settings)
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Bring back what is wanted, and keep it until cancelled; then every server is stopped."""
        wanted = self._deployments.wanted
        await anyio.to_thread.run_sync(end_orphans, self._settings.folder)
        await anyio.to_thread.run_sync(remove_left_sockets, self._settings.sockets_folder)
        await anyio.to_thread.run_sync(wanted.load)
        await self._engine.look()
        for model in list(wanted.removing.values()):  # a crash came between
            await self._delete_files(model)
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for model in wanted.models.values():
                self.add(model)
            task_status.started()
            await anyio.sleep_forever()

    def add(self, model: WantedModel, needs: Space = NOTHING) -> None:
        """Begin to serve `model`, which is stored already; `needs` is estimated."""
        machine = machine_for(model, self._settings.load_timeout_s, self._engine.argv)
        entry = DeploymentEntry(model, machine, needs=needs)
        self._deployments.add(entry)
        self.apply(entry, entry.machine.deploy())
        keep_time = partial(self._keep_time, entry)
        self._group.start_soon(self._parts.keep, f"deployment {model.alias}", keep_time)

    def apply(self, entry: DeploymentEntry, actions: list[Action]) -> None:
        """Carry out the actions of the entry's machine, and report its possible change."""
        for action in actions:
            match action:
                case StartDownload():
                    self._start(entry, self._download, entry)
                case Launch(generation, wish):
                    runner = Runner(self._new_key(), self._settings, self._places.log(entry.model))
                    entry.runners[generation] = runner
                    self._start(entry, self._serve, entry, runner, generation, wish)
                case Halt(generation):
                    entry.runners[generation].halt()
                    self._room.leave(entry, generation)
                case DeleteFiles():
                    entry.gone = True
                    self._start(entry, self._delete, entry)
                case _:
                    assert_never(action)
        wish = entry.machine.wish
        served = replace(
            entry.model,
            context_tokens=wish.context_tokens,
            slots=wish.slots,
            placement=wish.placement,
            gpu_share=wish.gpu_share,
            options=wish.options,
        )
        if served != entry.model:  # a swap was reverted: store what is served now
            entry.model = served
            self._start(entry, self._deployments.keep, entry)
        waiting, entry.changed = entry.changed, anyio.Event()
        waiting.set()
        log_change(entry)
        self._room.observe(entry)
        self.observe(entry)
        self._on_event(DeploymentEvent("state", status_of(entry)))

    @property
    def _group(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise RuntimeError("Supervisor.run is not running")
        return self._tasks

    def check_running(self) -> None:
        """Raise `NodeUnavailable` if the list of deployments could not be read.

        A change would overwrite that list.
        """
        if self._tasks is None:
            raise NodeUnavailable(
                "this node could not bring its managed models back; its log says why", Fault.STORAGE
            )

    def _start(
        self, entry: DeploymentEntry, work: Callable[..., Awaitable[None]], *arguments: Any
    ) -> None:
        self._group.start_soon(self._guarded, entry, work, arguments)

    async def _guarded(
        self,
        entry: DeploymentEntry,
        work: Callable[..., Awaitable[None]],
        arguments: tuple[Any, ...],
    ) -> None:
        """Run one deployment's work; log its exception, so that other deployments continue."""
        try:
            await work(*arguments)
        except Exception:
            log.exception("a task for the deployment %s failed", entry.model.alias)

    async def _keep_time(self, entry: DeploymentEntry) -> None:
        """Call the machine at its deadlines; one task for each deployment."""
        while not entry.gone:
            changed, deadline = entry.changed, entry.machine.next_deadline()
            if deadline is None:
                await changed.wait()
                continue
            with anyio.move_on_after(max(0.0, deadline - self._now())):
                await changed.wait()
                continue
            self.apply(entry, entry.machine.handle_timeout(self._now()))

    async def _download(self, entry: DeploymentEntry) -> None:
        model = entry.model
        files = files_of(model)

        def tell(progress: Progress) -> None:
            entry.progress = progress
            self._on_event(DeploymentEvent("progress", status_of(entry)))

        with anyio.CancelScope() as scope:
            entry.download = scope
            try:
                if not model.server:
                    await self._engine.ensure(tell)
                if not model.server and not entry.machine.wish.engine:  # it was installed just now
                    entry.machine.wish = replace(entry.machine.wish, engine=self._engine.argv)
                for kind, added in (("lora", model.lora), ("draft", model.draft)):
                    if added is not None:
                        folder = self._places.added_folder(model, added, kind)
                        await self._fetch_added(added, folder, tell)
                if model.local is None:
                    repository = Repository(model.repo, model.commit, gated=False, quantisations=())
                    await self._fetch(repository, files, self._places.folder(model), tell)
                else:
                    folders, local = self._settings.file_folders, Path(model.local)
                    await anyio.to_thread.run_sync(check_local, folders, local, files)
            except WaiError as error:
                may_pass = error.fault in (Fault.UPSTREAM_UNREACHABLE, Fault.UPSTREAM_TIMEOUT)
                actions = entry.machine.download_failed(str(error), self._now(), may_pass=may_pass)
            except Exception:
                log.exception("the download of %s failed", model.alias)
                reason = "the download failed because of a fault in the node; see the node's log"
                actions = entry.machine.download_failed(reason, self._now(), may_pass=False)
            else:
                actions = entry.machine.download_done(self._now())
            entry.download = None
            self.apply(entry, actions)

    async def _fetch_added(
        self, added: AddedFile, folder: Path, tell: Callable[[Progress], None]
    ) -> None:
        """Have an adapter or a draft model where the server looks for it. Raises `WaiError`."""
        files = [remote_file(added)]
        if added.local is not None:
            await anyio.to_thread.run_sync(check_local, self._settings.file_folders, folder, files)
            return
        await self._fetch(repository_of(added), files, folder, tell)

    async def _fetch(
        self,
        repository: Repository,
        files: Sequence[RemoteFile],
        folder: Path,
        tell: Callable[[Progress], None],
    ) -> None:
        """Download what is missing of `files`. Raises `WaiError`."""
        await Download(
            self._hub.transfer,
            lambda file: self._hub.file_url(repository, file),
            files,
            folder,
            tell,
            clock=self._clock,
            kept_free_bytes=self._settings.kept_free_bytes,
        ).run()

    async def _serve(
        self, entry: DeploymentEntry, runner: Runner, generation: int, wish: Wish
    ) -> None:
        """Run one server from start to end, and report both to the machine."""

        def on_ready(context_tokens: int) -> None:
            actions = entry.machine.server_ready(generation, context_tokens, self._now())
            self._room.loaded(entry, generation)
            self.apply(entry, actions)
            self._start(entry, self._learn, entry, runner, wish)

        try:
            files = self._places.files(entry.model)
            wish = await self._placed(entry, generation, wish)
            reason = await self._room.take(entry, generation, wish)
            reason = reason or await runner.run(entry.model, files, wish, on_ready)
        except Exception:
            log.exception("a server of %s could not be run", entry.model.alias)
            reason = "the server was ended by a fault of the node's; its log says which"
        self._room.ended(entry, generation)
        tail = runner.log_tail[-SHOWN_LOG_LINES:]
        actions = entry.machine.server_ended(generation, reason, tail, self._now())
        del entry.runners[generation]
        self.apply(entry, actions)

    async def _placed(self, entry: DeploymentEntry, generation: int, wish: Wish) -> Wish:
        """Place a server that is to be started by what is free now, and not when it was deployed.

        One that is to run beside another has just been placed there.
        """
        if entry.machine.serving is not None:
            return wish
        try:
            placement = await self._place(entry, wish)
        except (WaiError, OSError):
            return wish  # its file can't be read: the server's start says why
        if placement != wish.placement:
            entry.machine.place(generation, placement)
            self.apply(entry, [])
        return wish.placed(placement)

    async def _learn(self, entry: DeploymentEntry, runner: Runner, wish: Wish) -> None:
        """Store how far the estimate was from what the server took."""
        proven = wish.context_tokens, wish.slots
        model = replace(
            entry.model,
            proven=proven,
            engine=wish.engine,
            proven_options=replace(wish.options, alias=entry.model.options.alias),
            proven_placement=wish.placement,
        )
        if not model.server:  # vLLM's log is not read
            try:
                files = self._places.files(model)
                shape, load = await anyio.to_thread.run_sync(read_load, files, wish)
                layout = await layout_of_files(model, files, shape)
            except (WaiError, OSError):
                return  # its file is gone: nothing to learn for
            known = Correction(*model.correction)
            learned = runner.learned(
                load, shape, model.weights_bytes, known, wish.placement, layout
            )
            if learned is not None:
                correction = learned.correction
                factors = (correction.weights, correction.cache, correction.compute)
                model = replace(model, correction=factors)
                entry.memory = learned.estimated_bytes, learned.seen_bytes
                self._on_event(DeploymentEvent("state", status_of(entry)))
        entry.model = replace(
            entry.model,
            proven=model.proven,
            correction=model.correction,
            engine=model.engine,
            proven_options=model.proven_options,
            proven_placement=model.proven_placement,
            load_s=entry.machine.load_s,
        )
        await self._deployments.keep(entry)

    async def _delete(self, entry: DeploymentEntry) -> None:
        await self._delete_files(entry.model)
        self._deployments.forget(entry)

    async def _delete_files(self, model: WantedModel) -> None:
        try:
            await anyio.to_thread.run_sync(self._places.delete, model)
        except OSError as error:
            log.warning("%s; it is tried again at the next start", error)
            return
        await self._deployments.deleted(model)
