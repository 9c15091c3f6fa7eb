"""One deployed model while the node runs: its state machine, its servers, its public status."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

import anyio
import msgspec
from msgspec.structs import replace

from wai_node.models.catalogue import Quantisation, RemoteFile, Repository
from wai_node.models.download import Progress
from wai_node.models.fit import Fit
from wai_node.models.space import NOTHING, Space
from wai_protocol.status import guessed_load_s

from .deployment import Deployment, State, Wish
from .load_policy import LoadPolicy
from .options import ServeOptions
from .server.runner import Runner
from .server.vllm import LOAD_BASE_S as VLLM_BASE_S
from .server.vllm import SERVER, find_vllm
from .wanted import AddedFile, WantedModel

log = logging.getLogger("wai.node.managed")

LOAD_BASE_S: Final = 120.0
LOAD_BYTES_PER_S: Final = 20 << 20  # a slow USB disk; a server that loads slower is taken to hang


class Loaded(msgspec.Struct, frozen=True):
    """What a request waited for: the load of a server took `load_s`, before which it waited for
    room for `waited_s`; `made_room`: the models that were unloaded for it."""

    generation: int
    load_s: float
    waited_s: float
    made_room: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """The URL of a server that is ready, its inference key, and its generation. `loaded`: set if
    the request waited for its load. `closing`: it is about to make room, so that new requests wait
    until it is loaded again."""

    url: str
    key: str = field(repr=False)
    generation: int
    loaded: Loaded | None = None
    closing: bool = False


class Held(msgspec.Struct, frozen=True):
    """What one server takes in memory: at most, and how much RAM at least."""

    most: Space
    least_ram: int = 0


class QuantFit(msgspec.Struct, frozen=True):
    """One quantisation of a repository, and how it fits this node."""

    quant: str
    size_bytes: int
    fit: Fit


class DeploymentStatus(msgspec.Struct, frozen=True):
    """One deployed model, as `list` shows it. `changing`: a change of it is in progress.
    `given_up`: it has failed, and will not soon be tried again. `wakes`: a request loads it, and
    may wait for that. `load_s`: how long a load takes, measured or guessed. `served_by`: the kind
    of server that has it, "" for one of the node's own; `called`: by which id callers ask for it,
    "": alias. `estimated_bytes` and `seen_bytes`: what its buffers were to take, and what its
    server's log says that they take; None: not known.
    """

    alias: str
    state: State
    reason: str
    log_tail: tuple[str, ...]
    swap_error: str
    context_tokens: int
    context_served: int | None
    slots: int
    options: ServeOptions
    purpose: str
    mmproj: str
    policy: LoadPolicy
    wakes: bool
    load_s: float
    changing: bool
    given_up: bool
    size_bytes: int
    in_flight: int
    progress: Progress | None
    served_by: str = ""
    called: str = ""
    estimated_bytes: int | None = None
    seen_bytes: int | None = None
    lora: str = ""
    draft: str = ""


class DeploymentEvent(msgspec.Struct, frozen=True):
    """A change of a deployment; `name` is "progress" or "state"."""

    name: str
    status: DeploymentStatus


class DeploymentEntry(msgspec.Struct):
    """A deployed model with its state machine and its running servers."""

    model: WantedModel
    machine: Deployment
    runners: dict[int, Runner] = msgspec.field(default_factory=dict)
    progress: Progress | None = None
    download: anyio.CancelScope | None = None
    changed: anyio.Event = msgspec.field(default_factory=anyio.Event)
    needs: Space = NOTHING
    """The memory that it will take, as far as that was estimated in this run."""
    held: dict[int, Held] = msgspec.field(default_factory=dict)
    """What its servers take that run, or that may be started, by generation."""
    waiting: int = 0  # requests that wait for it
    asked_to_load: bool = False  # by an admin: it is loaded though no request waits for it
    waits_for: str = ""  # what has to happen before it can be loaded
    loaded: Loaded | None = None  # its last load
    memory: tuple[int, int] | None = None
    """The bytes that its server's buffers were estimated at, and that they take."""
    logged: tuple[object, ...] = ()
    logged_swap: str = ""
    removed: bool = False  # removal was asked for; `gone` once its servers have ended
    gone: bool = False


async def until_ended(entry: DeploymentEntry) -> None:
    """Wait until a server has ended that is unloaded. Meanwhile its memory may be free or not."""
    machine = entry.machine
    while machine.state is State.STOPPING and not machine.changing:
        await entry.changed.wait()


def wish_of(
    model: WantedModel, load_timeout_s: float | None = None, engine: tuple[str, ...] = ()
) -> Wish:
    """Return the wish of a stored model; the limit for loading grows with the files' size."""
    vllm = model.server == SERVER
    base_s = VLLM_BASE_S if vllm else LOAD_BASE_S
    return Wish(
        engine=find_vllm() if vllm else engine,
        gpu_share=model.gpu_share,
        options=model.options,
        context_tokens=model.context_tokens,
        slots=model.slots,
        placement=model.placement,
        on_demand=model.policy.on_demand,
        idle_unload_s=model.idle_unload_s,
        load_limit_s=load_timeout_s or base_s + model.size_bytes / LOAD_BYTES_PER_S,
    )


def machine_for(
    model: WantedModel, load_timeout_s: float | None = None, engine: tuple[str, ...] = ()
) -> Deployment:
    """Return the state machine of a model that this or an earlier run deployed, to be served by
    `engine`, and if that does not start, by the one that served it last."""
    proven = None
    if model.proven is not None:
        context_tokens, slots = model.proven
        before = replace(
            model,
            context_tokens=context_tokens,
            slots=slots,
            options=model.proven_options,
            placement=model.proven_placement,
        )
        there = bool(model.engine) and os.access(model.engine[0], os.X_OK)
        proven = wish_of(before, load_timeout_s, model.engine if there else engine)
    return Deployment(wish_of(model, load_timeout_s, engine), proven)


def hub_fields(repository: Repository, quant: Quantisation) -> dict[str, Any]:
    """Return the fields of a `WantedModel` that come from its repository."""
    return {
        "commit": repository.commit,
        "paths": tuple(file.path for file in quant.files),
        "sizes": tuple(file.size_bytes for file in quant.files),
        "sha256": tuple(file.sha256 for file in quant.files),
        "local": None if repository.folder is None else str(repository.folder),
    }


def files_of(model: WantedModel) -> list[RemoteFile]:
    """Return the model's files as the hub listed them."""
    rows = [*zip(model.paths, model.sizes, model.sha256, strict=True)]
    if model.mmproj is not None:
        rows.append(model.mmproj)
    return [RemoteFile(path, size, sha256) for path, size, sha256 in rows]


def endpoint_of(entry: DeploymentEntry, generation: int | None) -> ServerAccess | None:
    """Return the endpoint of a generation; None once it has ended."""
    runner = entry.runners.get(generation) if generation is not None else None
    if runner is None or runner.url is None or generation is None:
        return None
    return ServerAccess(runner.url, runner.key, generation, closing=entry.machine.closing)


def load_s_of(entry: DeploymentEntry) -> float:
    """Return how long a load takes: as the last one took, or by its size."""
    known = entry.model.load_s
    return guessed_load_s(entry.model.size_bytes) if known is None else known


def log_change(entry: DeploymentEntry) -> None:
    """Log changes of state that the node's owner wants to know: ready, failed, downloading, …"""
    machine, alias = entry.machine, entry.model.alias
    now = machine.state, machine.reason, machine.context_served, machine.wish.slots
    if now != entry.logged:
        entry.logged = now
        match machine.state:
            case State.FAILED:
                log.warning("%s failed: %s", alias, machine.reason)
            case State.READY:
                served = machine.wish.slots, machine.context_served
                log.info("%s is ready: %d slots of %d tokens", alias, *served)
            case State.DOWNLOADING:
                log.info("%s: downloading missing files", alias)
            case state:
                log.info("%s is %s", alias, state.value)
    if machine.swap_error != entry.logged_swap:
        entry.logged_swap = machine.swap_error
        if machine.swap_error:
            log.warning("%s: the change was taken back: %s", alias, machine.swap_error)


def _added_name(added: AddedFile | None) -> str:
    return "" if added is None else f"{added.repo}/{PurePosixPath(added.path).name}"


def status_of(entry: DeploymentEntry) -> DeploymentStatus:
    """Return the public status of an entry."""
    machine = entry.machine
    wakes = machine.wish.on_demand and machine.proven is not None
    estimated, seen = entry.memory or (None, None)
    return DeploymentStatus(
        alias=entry.model.alias,
        state=machine.state,
        reason=machine.reason or entry.waits_for,
        log_tail=machine.log_tail,
        swap_error=machine.swap_error,
        context_tokens=machine.wish.context_tokens,
        context_served=machine.context_served,
        slots=machine.wish.slots,
        options=machine.wish.options,
        purpose=entry.model.purpose,
        mmproj=PurePosixPath(entry.model.mmproj[0]).name if entry.model.mmproj else "",
        lora=_added_name(entry.model.lora),
        draft=_added_name(entry.model.draft),
        policy=entry.model.policy,
        wakes=wakes,
        load_s=load_s_of(entry),
        changing=machine.changing,
        # One on demand is not tried again by itself: it is for nobody until its pause is over.
        given_up=machine.given_up or (wakes and machine.state is State.FAILED),
        size_bytes=entry.model.size_bytes,
        in_flight=machine.in_flight,
        served_by=entry.model.server,
        estimated_bytes=estimated,
        seen_bytes=seen,
        progress=entry.progress if machine.state is State.DOWNLOADING else None,
    )
