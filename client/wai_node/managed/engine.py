"""The engine that this node runs its models on: which one, what it can use, and getting one.

A state beside the disk: `look` reads what is chosen and asks the program itself. What happens to
the running models when it changes is `engine_swap`'s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from wai_node.engines.backends import NAMES
from wai_node.engines.find import NONE_HERE, Engine, find_engine
from wai_node.engines.fitting import Machine, backends_for, detect_machine, gpu_advice
from wai_node.engines.install import install_build
from wai_node.engines.manifest import Choice, choose, read_manifest_file, shipped
from wai_node.engines.matching import match_devices
from wai_node.engines.probe import Device, devices_of, version_of
from wai_node.engines.store import EngineStore
from wai_node.models.download import Clock, Progress
from wai_node.models.hardware import Hardware, detect_hardware
from wai_protocol.errors import Fault, RequestError, WaiError

from .policy import ManagedSettings

log = logging.getLogger("wai.node.managed")


class EngineState(msgspec.Struct, frozen=True):
    """What is known of the engine. `devices`: the GPUs that it can use; None: not asked, or not
    told. `problem`: what people must know. `offer`: what would be installed, if that is allowed.
    `on_trial`: it was chosen, and has served no model yet."""

    engine: Engine | None = None
    version: str = ""
    devices: tuple[Device, ...] | None = None
    problem: str = ""
    offer: str = ""
    on_trial: bool = False
    names: Mapping[int, str] = msgspec.field(default_factory=dict)
    """Its names for the machine's GPUs, by their numbers; those that it can't use are not there."""

    def detail(self) -> dict[str, Any]:
        """Return it as plain values, for STATUS."""
        return {
            "name": None if self.engine is None else self.engine.name,
            "version": self.version,
            "devices": [device.description for device in self.devices or ()],
            "problem": self.problem,
            "offer": self.offer,
        }


class NodeEngine:
    """Finds, probes and installs the engine of a node. `on_state` gets each new state; `hardware`
    and `machine` tell what there is, and are asked at each look."""

    def __init__(
        self,
        settings: ManagedSettings,
        on_state: Callable[[EngineState], None] = lambda state: None,
        *,
        hardware: Callable[[], Hardware] = detect_hardware,
        machine: Callable[[Hardware], Machine] = detect_machine,
        clock: Clock | None = None,
    ) -> None:
        self.store = EngineStore(settings.folder.parent)
        self.state = EngineState()
        self._settings, self._hardware, self._on_state = settings, hardware, on_state
        self._machine, self._clock = machine, clock
        self._stamp: tuple[int, ...] | None = None
        self._installing = anyio.Lock()

    @property
    def argv(self) -> tuple[str, ...]:
        """The program to run; empty if there is none."""
        return () if self.state.engine is None else self.state.engine.argv

    @property
    def is_stale(self) -> bool:
        """Whether the choice on the disk is not the one that `look` saw, or the program is gone."""
        gone = bool(self.argv) and not os.access(self.argv[0], os.X_OK)
        return gone or self.store.stamp() != self._stamp

    async def look(self) -> bool:
        """See which engine is to be used; return whether it is another one than before."""
        before = self.argv
        self._stamp = self.store.stamp()
        self.state = await anyio.to_thread.run_sync(self._seen)
        self._on_state(self.state)
        if self.argv != before and self.state.engine is not None:
            log.info("models run on the engine %s (%s)", self.state.engine.name, self.state.version)
        if self.state.problem:
            log.warning("%s", self.state.problem)
        return self.argv != before

    def usable(self, hardware: Hardware) -> Hardware:
        """Return `hardware` as far as the engine can use it; blocking.

        Without an engine: as far as the one can that would be installed.
        """
        if not hardware.gpus:
            return hardware
        without = self.state.devices == ()
        if self.state.engine is None:
            try:
                without = self._build(self._machine(hardware)).build.backend == "cpu"
            except WaiError:
                without = False
        if without:
            return replace(hardware, gpus=(), unified_memory=False)
        names = self.state.names
        if not names:
            return hardware
        cards = [replace(c, device=names[c.number]) for c in hardware.gpus if c.number in names]
        return replace(hardware, gpus=tuple(cards))

    async def check(self, *, install: bool) -> None:
        """Raise `RequestError` unless there is an engine, or one may be installed for a deployment.

        `install`: that was asked for; it is remembered until it is done.
        """
        if self.state.engine is not None:
            return
        if self._settings.server is not None:
            raise RequestError(self.state.problem, Fault.NOT_FOUND)
        may = self._settings.engine
        if may == "never":
            raise RequestError(
                "no llama-server is on this node, and its owner lets nobody install one from here:"
                " `wai node engine install` on the node does it",
                Fault.FORBIDDEN,
            )
        asked = install or await anyio.to_thread.run_sync(lambda: self.store.choice().wanted)
        if not asked and may != "auto":
            offer = f" (it installs {self.state.offer})" if self.state.offer else ""
            raise RequestError(f"{NONE_HERE}{offer}", Fault.NOT_FOUND)
        await anyio.to_thread.run_sync(self._choice)  # raises if there is no build
        await anyio.to_thread.run_sync(self.store.want)

    async def came_up(self) -> None:
        """Note that the engine on trial has served. Raises `StoreError`."""
        if self.state.engine is not None:
            await anyio.to_thread.run_sync(self.store.proven, self.state.engine.name)
        self.state = replace(self.state, on_trial=False)

    async def go_back(self, reason: str) -> None:
        """Go back to the engine of before, because that on trial did not come up.

        Raises `StoreError`.
        """
        if self.state.engine is None:
            return
        name = self.state.engine.name
        before = await anyio.to_thread.run_sync(self.store.go_back, name, reason)
        log.warning(
            "the engine %s did not come up (%s); back to %s",
            *(name, reason, before or "what is found"),
        )

    async def ensure(self, on_progress: Callable[[Progress], None]) -> None:
        """Install an engine if there is none and that was asked for. Raises `WaiError`."""
        async with self._installing:
            if self.state.engine is not None:
                return
            wanted = await anyio.to_thread.run_sync(lambda: self.store.choice().wanted)
            if not (wanted or self._settings.engine == "auto"):
                return  # the start of the server says what is missing
            choice = await anyio.to_thread.run_sync(self._choice)
            log.info("installing the engine %s", choice.name)
            engine = await install_build(
                self.store,
                choice,
                on_progress,
                proxies=self._settings.proxies,
                clock=self._clock,
            )
            await anyio.to_thread.run_sync(self.store.use, engine.name)
            await self.look()

    def _choice(self) -> Choice:
        return self._build(self._machine(self._hardware()))

    def _build(self, machine: Machine) -> Choice:
        file = self._settings.engine_manifest
        return choose(
            shipped() if file is None else read_manifest_file(file),
            machine.system,
            machine.machine,
            backends_for(machine),
            mirror=self._settings.engine_mirror,
        )

    def _seen(self) -> EngineState:
        """Find the engine and ask it. Blocking."""
        hardware = self._hardware()
        machine = self._machine(hardware) if hardware.gpus else None
        try:
            engine = find_engine(self.store, self._settings.server)
        except WaiError as error:
            configured = str(error) if self._settings.server else ""
            return EngineState(problem=configured, offer=self._offer(hardware))
        choice = self.store.choice()
        on_trial = choice.on_trial and choice.used == engine.name
        version, devices = "", None
        if engine.installed:
            try:
                version = version_of(engine.argv)
            except WaiError as error:
                return EngineState(engine, problem=str(error), on_trial=on_trial)
        if hardware.gpus:
            devices = devices_of(engine.argv) if engine.probed else ()
        problem = ""
        if machine is not None and devices == () and self._settings.allow_deploy:
            problem = self._unused(engine, hardware, machine)
        names = match_devices(hardware.gpus, devices or ())
        return EngineState(engine, version, devices, problem, on_trial=on_trial, names=names)

    def _offer(self, hardware: Hardware) -> str:
        if self._settings.engine == "never":
            return ""
        try:
            choice = self._build(self._machine(hardware))
        except WaiError:
            return ""
        mib = max(1, choice.build.size_bytes >> 20)
        backend = NAMES.get(choice.build.backend, choice.build.backend)
        return f"llama.cpp {choice.version} for {backend}, {mib} MiB"

    def _unused(self, engine: Engine, hardware: Hardware, machine: Machine) -> str:
        """Return the sentence about a GPU that lies idle."""
        cards = ", ".join(dict.fromkeys(gpu.name for gpu in hardware.gpus))
        said = f"the engine {engine.name} can't use this machine's GPU ({cards}): models run on the"
        said += " CPU, which is far slower; "
        try:
            better = self._build(machine).build.backend
        except WaiError:
            better = "cpu"
        advice = gpu_advice(machine)
        if better != "cpu" and not (engine.installed and engine.name.endswith(f"-{better}")):
            name = NAMES.get(better, better)
            return f"{said}`wai node engine install` on the node gets one for {name}"
        return said + (advice or "see whether the graphics driver works")
