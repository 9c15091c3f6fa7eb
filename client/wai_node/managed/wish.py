"""What is wished of a deployment, the states that it has, and what its machine asks for. Pure."""

from __future__ import annotations

import enum

import msgspec
from msgspec.structs import replace

from wai_node.models.placement import Placement

from .options import DEFAULT, ServeOptions


class State(enum.Enum):
    """The state of a deployment; the value is what people read."""

    ABSENT = "absent"
    DOWNLOADING = "downloading"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    ASLEEP = "asleep"
    FAILED = "failed"


class Wish(msgspec.Struct, frozen=True):
    """The desired way to serve a model.

    `context_tokens` is per slot. `on_demand`: it need not be loaded while nobody asks for it.
    `idle_unload_s` None: never unload because of the time. `load_limit_s`: a server that loads for
    longer counts as hung. `placement`: where its layers
    are, None: the node has no GPU. `engine`: the program that serves
    it; empty: none was found. `options`: how it computes. `gpu_share`: what vLLM takes of its GPU's
    memory.
    """

    context_tokens: int
    slots: int
    placement: Placement | None = None
    engine: tuple[str, ...] = ()
    options: ServeOptions = DEFAULT
    idle_unload_s: float | None = None
    load_limit_s: float = 300.0
    on_demand: bool = False
    gpu_share: float | None = None

    def placed(self, placement: Placement | None) -> Wish:
        """Return the same, with the layers elsewhere."""
        return replace(self, placement=placement)

    def renamed(self, alias: str) -> Wish:
        """Return the same, with another second name."""
        return replace(self, options=replace(self.options, alias=alias))


class StartDownload(msgspec.Struct, frozen=True):
    """Action: download the files, then call `download_done` or `download_failed`."""


class Launch(msgspec.Struct, frozen=True):
    """Action: start a server, as soon as there is room for it: `begin_load` says when that is. Then
    call `server_ready` or `server_ended`."""

    generation: int
    wish: Wish


class Halt(msgspec.Struct, frozen=True):
    """Action: stop a server; then call `server_ended`."""

    generation: int


class DeleteFiles(msgspec.Struct, frozen=True):
    """Action: the deployment was removed and its servers have ended; delete its files."""


Action = StartDownload | Launch | Halt | DeleteFiles
