"""Models on the hub and on nodes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from .bounds import (
    MAX_CONTEXT_TOKENS,
    MAX_DEPLOY_PRIORITY,
    MAX_DRAFT_TOKENS,
    MAX_ENGINE_FLAGS,
    MAX_FLAG_CHARS,
    MAX_GPU_LAYERS,
    MAX_GPUS,
    MAX_IDLE_S,
    MAX_NAMES,
    MAX_REPLICAS,
    MAX_SLOTS,
    MIN_IDLE_S,
)

Reference = Annotated[str, Meta(min_length=3, max_length=300)]
CacheType = Literal["f16", "q8_0", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]
LoadWord = Literal["keep_loaded", "on_demand"]
Priority = Annotated[int, Meta(ge=-MAX_DEPLOY_PRIORITY, le=MAX_DEPLOY_PRIORITY)]
NodeName = Annotated[str, Meta(min_length=1, max_length=128)]
GpuLayers = Annotated[int, Meta(ge=0, le=MAX_GPU_LAYERS)]
CpuMoe = GpuLayers
GpuNumber = Annotated[int, Meta(ge=0, lt=MAX_GPUS)]
Gpus = Annotated[tuple[GpuNumber, ...], Meta(max_length=MAX_GPUS)]
ReasoningFormat = Literal["auto", "none", "deepseek", "deepseek-legacy"]
DraftMax = Annotated[int, Meta(ge=1, le=MAX_DRAFT_TOKENS)]
Alias = Annotated[str, Meta(max_length=96)]
EngineFlag = Annotated[str, Meta(min_length=1, max_length=MAX_FLAG_CHARS)]
EngineFlags = Annotated[tuple[EngineFlag, ...], Meta(max_length=MAX_ENGINE_FLAGS)]


class FoundModelView(Struct, frozen=True, kw_only=True):
    """A repository on the hub."""

    repo: str
    downloads: int
    likes: int
    gated: bool


class FoundModels(Struct, frozen=True):
    """What a search found."""

    data: tuple[FoundModelView, ...]


class QuantFitView(Struct, frozen=True, kw_only=True):
    """One quantisation on one node. `verdict`: gpu, partial (some layers in RAM), cpu or no; `low`
    and `high` are what it takes, `largest_context` what would fit, per slot."""

    quant: str
    size_bytes: int
    verdict: str
    low_bytes: int
    high_bytes: int
    largest_context: int
    gpu_layers: int
    reason: str
    cpu_moe: int = 0  # older nodes do not say


class NodeFit(Struct, frozen=True, kw_only=True):
    """A repository's quantisations on one node, or why that could not be told."""

    node: str
    quants: tuple[QuantFitView, ...] = ()
    error: str | None = None


class FitList(Struct, frozen=True):
    """What fits where."""

    data: tuple[NodeFit, ...]


class ProgressView(Struct, frozen=True, kw_only=True):
    """A download under way."""

    done_bytes: int
    total_bytes: int
    rate_bps: float
    eta_s: float | None


class DeploymentView(Struct, frozen=True, kw_only=True):
    """A deployed model. `state`: downloading, starting, ready, draining, stopping, asleep, failed
    or absent. `context` is what is wanted per slot, `context_served` what is served now.
    `changing`: it is on its way from one to the other. `swap_error` says why the last change
    was taken back. `id` names it among all nodes'. `purpose`: chat, embedding or rerank; "" on
    older nodes. `mmproj`: the projector by which it sees images. `gpu_layers` null: as many as fit.
    `cpu_moe`: of so many layers the experts stay in RAM, null: of as few as fit. `gpus`: the
    numbers of the GPUs that it may use, empty: any. `draft`: the model that drafts for it,
    `draft_max` tokens at once (null: as many as its engine does). `alias`: a second name by which
    callers may ask for it.
    `load`: whether it is kept in memory or loaded on demand; one on demand is unloaded after
    `idle_unload_s` without a request (null: only to make room for another), and loaded in about
    `load_ms` by the next. A higher `priority` gets memory first.
    `served_by`: the kind of server that has it, as ollama or vllm; "" for llama-server.
    `called`: the id by which callers ask for it where that is not `model`; there `context` and
    `slots` are 0 if the server does not tell. `estimated_bytes` and `seen_bytes`: the memory that
    its buffers were to take, and that the server's log says they take; null: not known."""

    id: str
    node: str
    node_id: str
    model: str
    state: str
    reason: str
    log_tail: tuple[str, ...]
    swap_error: str
    context: int
    context_served: int | None
    slots: int
    size_bytes: int
    in_flight: int
    progress: ProgressView | None
    changing: bool = False  # older nodes do not say, nor what follows
    purpose: str = ""
    mmproj: str = ""
    idle_unload_s: float | None = None
    cache_type: str = "f16"
    gpu_layers: int | None = None
    flash_attention: str = "auto"
    engine_flags: tuple[str, ...] = ()
    load: str = "keep_loaded"
    priority: int = 0
    load_ms: int | None = None
    served_by: str = ""
    called: str = ""
    lora: str = ""
    cpu_moe: int | None = None
    gpus: tuple[int, ...] = ()
    reasoning_format: str = "auto"
    environment: tuple[str, ...] = ()
    draft: str = ""
    draft_max: int | None = None
    alias: str = ""
    estimated_bytes: int | None = None
    seen_bytes: int | None = None


class DeploymentList(Struct, frozen=True):
    """Deployed models."""

    data: tuple[DeploymentView, ...]


class DeploymentWish(Struct, frozen=True, kw_only=True):
    """A model to serve: `model` is publisher/name[:QUANT], or ollama:NAME[:TAG] or
    lmstudio:publisher/name for a server that is there, or vllm:publisher/name; `context` is tokens
    per slot.
    `install_engine`: a node without a llama-server installs one first. `gpu_layers` null: as many
    as fit. `engine_flags` are added to llama-server's own, if the node's owner allows that.
    `mmproj`: a projector's file name or precision, "none", or null: the repository's best one.
    `load`, `idle_unload_s`, `priority`: see `DeploymentView`; null `load`: on demand where there is
    a time, else kept loaded.
    `lora`: an adapter, as publisher/name[:QUANT] or ./FILE.gguf of the node. `draft`: a small model
    that drafts for it, written alike, "none", or null: the repository's own if it has one.
    `cpu_moe`, `gpus`, `draft_max`: see `DeploymentView`. `environment`: NAME=VALUE for its server,
    if the node's owner allows that."""

    model: Reference
    context: Annotated[int, Meta(ge=1, le=MAX_CONTEXT_TOKENS)] | None = None
    slots: Annotated[int, Meta(ge=1, le=MAX_SLOTS)] | None = None
    idle_unload_s: Annotated[float, Meta(ge=MIN_IDLE_S, le=MAX_IDLE_S)] | None = None
    install_engine: bool = False
    cache_type: CacheType | None = None
    gpu_layers: GpuLayers | None = None
    flash_attention: FlashAttention | None = None
    engine_flags: EngineFlags | None = None
    mmproj: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    lora: Reference | None = None
    draft: Annotated[str, Meta(min_length=3, max_length=300)] | None = None
    cpu_moe: CpuMoe | None = None
    gpus: Gpus | None = None
    reasoning_format: ReasoningFormat | None = None
    environment: EngineFlags | None = None
    draft_max: DraftMax | None = None
    alias: Alias | None = None
    load: LoadWord | None = None
    priority: Priority | None = None


class CreateDeployment(DeploymentWish, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model to serve on one node."""

    node: NodeName


class CreateDeployments(DeploymentWish, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model to serve on several nodes. `nodes` null: all that are connected and may deploy.
    `replicas`: on so many of them, those that it fits best."""

    nodes: Annotated[tuple[NodeName, ...], Meta(min_length=1, max_length=MAX_NAMES)] | None = None
    replicas: Annotated[int, Meta(ge=1, le=MAX_REPLICAS)] | None = None


class PlacedView(Struct, frozen=True, kw_only=True):
    """What became of a deployment on one node. `outcome`: deployed (it is being downloaded), failed
    or left_out. `reason`: a sentence that says why."""

    node: str
    outcome: str
    reason: str
    deployment: DeploymentView | None = None


class PlacedList(Struct, frozen=True):
    """What became of it on each node."""

    data: tuple[PlacedView, ...]


class ChangeDeployment(Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be otherwise; what is left out stays as it is. `context` is tokens per slot;
    `gpu_layers` null: as many as fit; `cpu_moe` null: as few as fit; `gpus` null: any;
    `draft_max` null: the engine's number; `idle_unload_s` null: only to make room for another. A
    time means on demand; `load` keep_loaded takes the time away."""

    context: Annotated[int, Meta(ge=1, le=MAX_CONTEXT_TOKENS)] | None = None
    slots: Annotated[int, Meta(ge=1, le=MAX_SLOTS)] | None = None
    idle_unload_s: Annotated[float, Meta(ge=MIN_IDLE_S, le=MAX_IDLE_S)] | UnsetType | None = UNSET
    cache_type: CacheType | None = None
    gpu_layers: GpuLayers | UnsetType | None = UNSET
    flash_attention: FlashAttention | None = None
    engine_flags: EngineFlags | None = None
    cpu_moe: CpuMoe | UnsetType | None = UNSET
    gpus: Gpus | UnsetType | None = UNSET
    reasoning_format: ReasoningFormat | None = None
    environment: EngineFlags | None = None
    draft_max: DraftMax | UnsetType | None = UNSET
    alias: Alias | None = None
    load: LoadWord | None = None
    priority: Priority | None = None


class LogLines(Struct, frozen=True):
    """A log's last lines, oldest first."""

    data: tuple[str, ...]
