"""Run one generation of a managed server: start it, wait until it loads, check its health, stop it.

This is the task behind a `Launch` action. It calls `on_ready` when the server has loaded, and
returns why it ended; the `Deployment` machine decides whether that is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import anyio
import anyio.to_thread

from wai_node.engines.find import NONE_HERE
from wai_node.managed.deployment import Wish
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.wanted import WantedModel
from wai_node.models.buffer_log import SeenBuffers, learn, read_buffers
from wai_node.models.estimate import Correction
from wai_node.models.fit import estimate_placed
from wai_node.models.gguf_file import read_shape
from wai_node.models.layout import Layout
from wai_node.models.load import Load
from wai_node.models.placement import Placement
from wai_node.models.shape import ModelShape
from wai_protocol.errors import Fault, TransportError, WaiError

from .health import Health, answers
from .log_file import LogFile
from .model_paths import ModelFiles
from .orphans import mark
from .process import HINTS, ProgramOptions, ServerOptions, ServerProcess
from .server_socket import ServerSocket
from .vllm import HINTS as VLLM_HINTS
from .vllm import NO_VLLM, SERVER, VllmHealth, vllm_options

LOADING_POLL_S: Final = 0.1  # a tiny model is ready in 0.1 s, a large one in minutes
HEALTH_EVERY_S: Final = 10.0
HEALTH_MISSES: Final = 3  # a server that does not answer /health for half a minute hangs


class Learned(NamedTuple):
    """What a start has taught: the correction from now on, and what its buffers were estimated at
    and took, in bytes."""

    correction: Correction
    estimated_bytes: int
    seen_bytes: int


class Runner:
    """Runs one server, which demands `key`.

    `url` and `pid` are set while it runs; `seen`, the
    sizes of its buffers, once it has loaded.
    """

    def __init__(self, key: str, settings: ManagedSettings, log_path: Path) -> None:
        self.url: str | None = None
        self.key = key
        self.pid: int | None = None
        self.seen: SeenBuffers | None = None
        self.log_tail: tuple[str, ...] = ()
        self._settings, self._log_path = settings, log_path
        self._scope = anyio.CancelScope()
        self._slots: int | None = None  # of a vLLM, which does not tell them

    def halt(self) -> None:
        """Stop the server, so that `run` returns. May be called at any time."""
        self._scope.cancel()

    async def run(
        self,
        model: WantedModel,
        files: ModelFiles,
        wish: Wish,
        on_ready: Callable[[int], None],
    ) -> str:
        """Run the server until it ends or is halted; return a sentence that says why."""
        vllm = model.server == SERVER
        self._slots = wish.slots if vllm else None
        try:
            if vllm:
                options: ProgramOptions = vllm_options(model, files.model, wish)
            else:
                options = await self._llama_options(model, files, wish)
        except WaiError as error:
            return str(error)
        log = LogFile(self._log_path)
        try:
            if not wish.engine:
                raise TransportError(NO_VLLM if vllm else NONE_HERE, Fault.NOT_FOUND)
            marks = mark(self._settings.folder)
            socket = ServerSocket(self._settings.sockets_folder)
            hints = (*VLLM_HINTS, *HINTS) if vllm else HINTS
            process = ServerProcess(wish.engine, options, self.key, log, socket, marks, hints)
            try:
                await process.start()
            except WaiError:
                socket.remove()
                raise
        except WaiError as error:
            log.close()
            return str(error)
        try:
            self.url, self.pid = socket.url, process.pid
            return await self._watch(process, on_ready)
        finally:
            self.log_tail = log.tail()
            self.url = self.pid = None
            log.close()

    async def _llama_options(
        self, model: WantedModel, files: ModelFiles, wish: Wish
    ) -> ServerOptions:
        shape = await anyio.to_thread.run_sync(read_shape, files.model)
        load = wish.options.load(shape, wish.context_tokens, wish.slots)
        return ServerOptions(
            serve=wish.options,
            projector=files.projector,
            adapter=files.adapter,
            draft=files.draft,
            purpose=shape.purpose,
            batch_tokens=load.batch_tokens if shape.reads_whole else None,
            model=files.model,
            alias=model.alias,
            context_tokens=wish.context_tokens,
            slots=wish.slots,
            placement=wish.placement,
            threads=self._settings.threads,
            extra=self._settings.extra_flags,
        )

    def learned(
        self,
        load: Load,
        shape: ModelShape,
        weights_bytes: int,
        known: Correction,
        placement: Placement | None = None,
        layout: Layout | None = None,
    ) -> Learned | None:
        """Return how far the estimate was off, by the log; None if the log has no figures.

        `load`: what it serves, on the devices of `placement`. `known`: the correction with which
        it was estimated. `layout`: how its weights are spread, if some are on GPUs.
        """
        if self.seen is None:
            return None
        of = shape, weights_bytes, load, placement
        estimated = estimate_placed(*of, known, layout)
        plain = estimate_placed(*of, layout=layout, pipelined=self.seen.pipelined)
        if placement is None or not placement.shares:
            return Learned(learn(self.seen, plain), estimated.buffers, self.seen.total)
        taken = self.seen.taken(plain.weights)
        return Learned(learn(self.seen, plain, spread=True), estimated.buffers, taken)

    async def _watch(self, process: ServerProcess, on_ready: Callable[[int], None]) -> str:
        """Follow the process and check its health; both have ended when this returns."""
        reason = ""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.follow)
            try:
                with self._scope:
                    reason = await self._until_ended(process, on_ready)
            finally:
                with anyio.CancelScope(shield=True):
                    await process.stop()
        return reason or "it was stopped"

    async def _until_ended(self, process: ServerProcess, on_ready: Callable[[int], None]) -> str:
        url = process.socket.url
        health = Health(url, self.key)
        if self._slots is not None:
            health = VllmHealth(url, self.key, self._slots)
        try:
            if await self._loaded(process, health):
                served = await health.served()
                if self._slots is None:  # a vLLM prints what it pleases, and teaches us nothing
                    await process.read_start()
                process.catch_up()  # what it printed until now: it had no request
                self.seen = read_buffers(process.log.tail())
                process.log.serving()
                on_ready(served.context_tokens)
                if not await self._stays_healthy(process, health):
                    return "the server no longer answered and was stopped"
        except WaiError as error:
            if not process.ended.is_set():
                return str(error)
        finally:
            with anyio.CancelScope(shield=True):
                await health.aclose()
        await process.ended.wait()
        return process.explain()

    async def _loaded(self, process: ServerProcess, health: Health) -> bool:
        """Poll until it is ready; return False if it ended first. The machine limits the time."""
        while not process.ended.is_set():
            if await answers(health):
                return True
            with anyio.move_on_after(LOADING_POLL_S):
                await process.ended.wait()
        return False

    async def _stays_healthy(self, process: ServerProcess, health: Health) -> bool:
        """Check the health regularly; return True when the process ended, False if it hangs."""
        misses = 0
        while misses < HEALTH_MISSES:
            with anyio.move_on_after(HEALTH_EVERY_S):
                await process.ended.wait()
                return True
            misses = 0 if await answers(health) else misses + 1
        return False
