"""Estimate the memory that llama-server needs for a model, as a range, and compare it with a node.

Pure. The formulas follow llama.cpp's buffers, and were fitted to what llama-server b10434 and
xllamacpp b11549 report for tiny models of every family in `tests/harness/tiny_families.py`
(tests/client/models/test_fit_against_llama_server.py requires agreement within 10 %). What earlier
starts on this node reported corrects them (`Correction`).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import Final

from wai_protocol.errors import RequestError

from .hardware import Hardware
from .projector import Projector
from .shape import ModelShape, Purpose
from .space import Space

UBATCH_TOKENS: Final = (
    512  # llama-server's default physical batch, which determines its graph's size
)
CELL_STEP: Final = 256  # llama.cpp rounds a cache up to this many cells per sequence
MIN_CONTEXT: Final = 512
MAX_SLOTS: Final = 256
F16_BYTES, F32_BYTES = 2, 4
# A process's memory beside its buffers: code, vocabulary, HTTP threads, the allocator's slack.
PROCESS_LOW_BYTES: Final = (
    40 << 20
)  # a tiny model's server was seen at 53 MB resident, buffers included
PROCESS_HIGH_BYTES: Final = 400 << 20  # an allowance, not measured: a large vocabulary, and slack
GPU_LOW_BYTES: Final = 150 << 20  # the lower part of GPUStack's allowance
GPU_HIGH_BYTES: Final = 650 << 20  # GPUStack's allowance, 150 + 500 MiB; not measured on a GPU here
LOW_FACTOR: Final = 0.95  # totals were seen within 1.3 % of a real server's
HIGH_FACTOR: Final = 1.05
_FUSED_GATE: Final = frozenset({"phi3"})
_SECOND_NORM: Final = frozenset({"gemma2", "deepseek2"})
RAM_KEPT_FREE: Final = 0.08  # of all RAM, for the system: full use would swap


class CacheType(enum.Enum):
    """The number format of a K/V cache; the value is llama-server's name for it."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_0 = "q5_0"
    Q4_0 = "q4_0"

    @property
    def bytes_per_value(self) -> float:
        """The bytes of one number, including its share of the block's scale."""
        return _CACHE_BYTES[self]


_CACHE_BYTES: Final = {
    CacheType.F32: 4.0,
    CacheType.F16: 2.0,
    CacheType.BF16: 2.0,
    CacheType.Q8_0: 34 / 32,
    CacheType.Q5_0: 22 / 32,
    CacheType.Q4_0: 18 / 32,
}


class FitVerdict(enum.Enum):
    """Where a model would run. `PARTIAL`: some layers on the GPU, the others, slower, in RAM."""

    GPU = "gpu"
    PARTIAL = "partial"
    CPU = "cpu"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Load:
    """The settings that determine memory; `context_tokens` is per slot. `batch_tokens`: how many
    are computed at once. `projector`: what lets the model see images."""

    context_tokens: int
    slots: int = 1
    cache_k: CacheType = CacheType.F16
    cache_v: CacheType = CacheType.F16
    flash_attention: bool = True
    batch_tokens: int = UBATCH_TOKENS
    projector: Projector | None = None

    def __post_init__(self) -> None:
        if self.context_tokens < 1 or not 1 <= self.slots <= MAX_SLOTS:
            raise RequestError(
                f"a context of {self.context_tokens} tokens in {self.slots} slots can't be served; "
                f"ask for at least {MIN_CONTEXT} tokens and 1-{MAX_SLOTS} slots"
            )


def load_for(shape: ModelShape, context_tokens: int, slots: int) -> Load:
    """Return a load with at most the context that the model was trained for."""
    context = min(context_tokens, shape.context_trained)
    return Load(context, slots, batch_tokens=batch_for(shape, context))


@dataclass(frozen=True, slots=True)
class Correction:
    """Ratio of seen to estimated bytes on this node by kind of buffer; 1.0 if nothing was seen."""

    weights: float = 1.0
    cache: float = 1.0
    compute: float = 1.0


NO_CORRECTION: Final = Correction()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated bytes of llama-server's buffers; `compute_high`: in builds with larger graphs."""

    weights: int
    cache: int
    compute: int
    compute_high: int

    @property
    def buffers(self) -> int:
        """The sum of the buffers that its log would name."""
        return self.weights + self.cache + self.compute

    @property
    def low(self) -> int:
        """The least memory of the process, without the GPU's overhead."""
        return int(self.buffers * LOW_FACTOR) + PROCESS_LOW_BYTES

    @property
    def high(self) -> int:
        """The most memory of the process, without the GPU's overhead."""
        total = self.weights + self.cache + self.compute_high
        return int(total * HIGH_FACTOR) + PROCESS_HIGH_BYTES


@dataclass(frozen=True, slots=True)
class Fit:
    """The result of `fit`.

    `largest_context`: the most tokens per slot with the same or a better `verdict`, at most what
    the model was trained for; 0 if nothing fits. `gpu_layers`: the value for llama-server's `-ngl`.
    """

    verdict: FitVerdict
    estimate: Estimate
    largest_context: int
    gpu_layers: int
    low_bytes: int
    high_bytes: int
    reason: str


def estimate(
    shape: ModelShape, weights_bytes: int, load: Load, correction: Correction = NO_CORRECTION
) -> Estimate:
    """Return the memory that llama-server needs for `load`; the files hold `weights_bytes`."""
    cells = _round_up(min(load.context_tokens, shape.context_trained), CELL_STEP)
    window_cells = min(cells, _round_up(shape.window + load.batch_tokens, CELL_STEP))
    low, high = _compute_bytes(shape, load, cells, window_cells)
    width = shape.vocabulary if shape.purpose is Purpose.CHAT else shape.embedding
    outputs = width * load.slots * F32_BYTES
    seeing = load.projector or Projector(0, 0, 0)
    return Estimate(
        weights=int((weights_bytes + seeing.weights) * correction.weights),
        cache=int(_cache_bytes(shape, load, cells, window_cells) * correction.cache),
        compute=int((low + outputs + seeing.compute) * correction.compute),
        compute_high=int((high + outputs + seeing.compute_high) * max(1.0, correction.compute)),
    )


def fit(
    shape: ModelShape,
    weights_bytes: int,
    load: Load,
    hardware: Hardware,
    correction: Correction = NO_CORRECTION,
    gpu_layers: int | None = None,
) -> Fit:
    """Return how `load` fits `hardware`, judged by the upper end of the estimate.

    `gpu_layers`: so many go to the GPU, whatever would be best.
    """
    found = estimate(shape, weights_bytes, load, correction)
    verdict, layers = _place(shape, found, hardware, gpu_layers)
    on_gpu = verdict in (FitVerdict.GPU, FitVerdict.PARTIAL)
    return Fit(
        verdict=verdict,
        estimate=found,
        largest_context=_largest_context(
            *(shape, weights_bytes, load, hardware, correction, verdict, gpu_layers)
        ),
        gpu_layers=layers,
        low_bytes=found.low + (GPU_LOW_BYTES if on_gpu else 0),
        high_bytes=found.high + (GPU_HIGH_BYTES * len(hardware.gpus) if on_gpu else 0),
        reason=_reason(verdict, found, hardware, layers, shape.blocks),
    )


def space_for(found: Estimate, blocks: int, layers: int | None, hardware: Hardware) -> Space:
    """Return the most that a model takes with so many of its layers on the GPU."""
    every = blocks + 1
    if not layers or not hardware.gpus or hardware.unified_memory:
        return Space(ram=found.high)
    if layers >= every:
        return Space(gpu=found.high)
    on_gpu = int(layers * (found.weights + found.cache) * HIGH_FACTOR / every)
    return Space(on_gpu + found.compute_high, max(0, found.high - on_gpu))


def free_space(hardware: Hardware) -> Space:
    """Return what models may still take: all that is free, less what is left to the system."""
    gpu, ram = _free_bytes(hardware)
    return Space(ram=ram) if hardware.unified_memory else Space(gpu, ram)


def _free_bytes(hardware: Hardware) -> tuple[int, int]:
    """Of the GPUs together, and of the RAM; with unified memory both are of the same."""
    ram = hardware.ram_available_bytes - int(hardware.ram_total_bytes * RAM_KEPT_FREE)
    return sum(max(0, card.free_bytes - GPU_HIGH_BYTES) for card in hardware.gpus), ram


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _cache_bytes(shape: ModelShape, load: Load, cells: int, window_cells: int) -> float:
    """Return the bytes of all layers' K/V caches for all slots, and of the recurrent states."""
    per_head = shape.key_length * load.cache_k.bytes_per_value
    if shape.value_cached:
        per_head += shape.value_length * load.cache_v.bytes_per_value
    total = 0.0
    for layer, heads in enumerate(shape.kv_heads):
        total += heads * per_head * (window_cells if layer in shape.window_layers else cells)
    if shape.recurrent is not None:
        state = shape.recurrent.values_per_sequence * F32_BYTES
        total += state * len(shape.recurrent_layers)
    return total * load.slots


def _compute_bytes(
    shape: ModelShape, load: Load, cells: int, window_cells: int
) -> tuple[float, float]:
    """Return the graph's scratch memory: as measured, and the most that other builds took.

    Its peak is the widest stage of one layer: feed-forward (gate, up, their product, and the
    stream), attention (q, k, v, its output, the stream), or a recurrent block. The mask
    is added; llama.cpp keeps it in F16 under flash attention.
    """
    if shape.encoder:
        return _encoder_bytes(shape, load)
    embedding, heads = shape.embedding, shape.heads
    feed_forward = _feed_forward_values(shape)
    keys = max(shape.kv_heads, default=0) * (shape.key_length + shape.value_length)
    attention = heads * (shape.key_length + shape.value_length) + keys + 2 * embedding
    recurrent = 6 * shape.recurrent.inner + embedding if shape.recurrent else 0
    if shape.recurrent and not any(shape.kv_heads):
        feed_forward = attention = 0
    widest = max(feed_forward, attention, recurrent)
    masks = 0.0
    scores = 0.0
    if any(shape.kv_heads):
        element = F16_BYTES if load.flash_attention else F32_BYTES
        everywhere = len(shape.window_layers) < shape.blocks
        masks = element * (cells * everywhere + window_cells * bool(shape.window_layers))
        scores = 0.0 if load.flash_attention else cells * heads * F32_BYTES
        widest = widest if load.flash_attention else attention
    low = load.batch_tokens * (widest * F32_BYTES + masks + scores)
    # some builds reserve logits for every token of a batch, or keep one more copy of the stream
    other = max(widest + embedding, shape.vocabulary + 2 * embedding)
    high = load.batch_tokens * (other * F32_BYTES + masks + scores)
    return low, max(low, high)


def _encoder_bytes(shape: ModelShape, load: Load) -> tuple[float, float]:
    """Return the scratch memory of a model without a cache, whose tokens attend to one batch.

    Its feed-forward part has no gate, or, in builds of newer families, one.
    """
    batch, embedding, wide = load.batch_tokens, shape.embedding, shape.feed_forward
    mask = batch * (F16_BYTES if load.flash_attention else F32_BYTES * (1 + shape.heads))
    low = batch * (max(wide + 3 * embedding, 5 * embedding) * F32_BYTES + mask)
    high = batch * ((3 * wide + 5 * embedding) * F32_BYTES + mask)
    return low, high


def _feed_forward_values(shape: ModelShape) -> int:
    """Return how many values per token exist at once in a layer's feed-forward part.

    This follows llama.cpp's allocator: one copy of the stream less if gate and up are one matrix,
    or if a narrow gate fits into the space that the stream's norm left. With the second norms of
    `_SECOND_NORM` two gates fit there.
    """
    wide, embedding = shape.feed_forward, shape.embedding
    narrow = wide <= 2 * embedding
    if narrow and shape.architecture in _SECOND_NORM:
        return 2 * wide + 4 * embedding
    if shape.architecture in _FUSED_GATE or (narrow and not shape.experts):
        return 3 * wide + 3 * embedding
    return 3 * wide + 4 * embedding


def _place(
    shape: ModelShape, found: Estimate, hardware: Hardware, wanted: int | None = None
) -> tuple[FitVerdict, int]:
    """Return the best place for a model, and how many layers go to the GPU: `wanted`, if given."""
    all_layers = shape.blocks + 1  # llama.cpp counts the output as one more
    gpu, ram = _free_bytes(hardware)
    if wanted is not None and hardware.gpus:
        return _place_layers(found, min(wanted, all_layers), all_layers, gpu, ram)
    if hardware.gpus and found.high <= gpu:
        return FitVerdict.GPU, all_layers
    if hardware.unified_memory:  # one memory: what the GPU can't hold, the CPU can't either
        gpu = 0
    if hardware.gpus and gpu > found.compute_high:
        per_layer = (found.weights + found.cache) * HIGH_FACTOR / all_layers
        layers = int((gpu - found.compute_high) / per_layer) if per_layer else 0
        layers = min(layers, all_layers - 1)
        if layers > 0 and found.high - layers * per_layer <= ram:
            return FitVerdict.PARTIAL, layers
    if found.high <= ram:
        return FitVerdict.CPU, 0
    return FitVerdict.NO, 0


def _with_context(shape: ModelShape, load: Load, context_tokens: int) -> Load:
    """Return `load` with another context, and the batch that goes with it."""
    batch = batch_for(shape, context_tokens)
    return replace(load, context_tokens=context_tokens, batch_tokens=batch)


def batch_for(shape: ModelShape, context_tokens: int) -> int:
    """Return how many tokens the server has to compute at once."""
    if not shape.reads_whole:
        return UBATCH_TOKENS
    return max(UBATCH_TOKENS, min(context_tokens, shape.context_trained))


def _place_layers(
    found: Estimate, layers: int, all_layers: int, gpu: int, ram: int
) -> tuple[FitVerdict, int]:
    """Return whether a model fits with just so many layers on the GPU."""
    per_layer = (found.weights + found.cache) * HIGH_FACTOR / all_layers
    on_gpu = layers * per_layer + found.compute_high if layers else 0.0
    in_ram = found.high if layers < all_layers else 0.0
    if on_gpu > gpu or in_ram - layers * per_layer > ram:
        return FitVerdict.NO, layers
    if layers == all_layers:
        return FitVerdict.GPU, layers
    return (FitVerdict.PARTIAL if layers else FitVerdict.CPU), layers


_ORDER: Final = (FitVerdict.GPU, FitVerdict.PARTIAL, FitVerdict.CPU, FitVerdict.NO)


def _largest_context(
    shape: ModelShape,
    weights_bytes: int,
    load: Load,
    hardware: Hardware,
    correction: Correction,
    verdict: FitVerdict,
    gpu_layers: int | None,
) -> int:
    """Return the largest multiple of `CELL_STEP` with at least `verdict`; if `load` does not fit
    at all, the largest that fits anywhere."""
    wanted = _ORDER.index(FitVerdict.CPU if verdict is FitVerdict.NO else verdict)

    def fits(steps: int) -> bool:
        tried = _with_context(shape, load, steps * CELL_STEP)
        found = estimate(shape, weights_bytes, tried, correction)
        return _ORDER.index(_place(shape, found, hardware, gpu_layers)[0]) <= wanted

    low, high = 0, math.ceil(shape.context_trained / CELL_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return min(low * CELL_STEP, shape.context_trained)


def _reason(
    verdict: FitVerdict, found: Estimate, hardware: Hardware, layers: int, blocks: int
) -> str:
    need = f"{_gib(found.low)}-{_gib(found.high)} GiB"
    available = _gib(hardware.ram_available_bytes)
    match verdict:
        case FitVerdict.GPU:
            return f"needs {need}; fits the GPU"
        case FitVerdict.PARTIAL:
            return (
                f"needs {need}; {layers} of {blocks + 1} layers fit the GPU, the rest runs in RAM"
            )
        case FitVerdict.CPU:
            return f"needs {need}; runs in RAM, of which {available} GiB are free"
        case FitVerdict.NO:
            return (
                f"needs {need}, and only {available} GiB of RAM are free{_gpu_part(hardware)}; "
                "choose a smaller quantisation or context"
            )


def _gpu_part(hardware: Hardware) -> str:
    free = sum(card.free_bytes for card in hardware.gpus)
    return f", and {_gib(free)} GiB on the GPU" if hardware.gpus else ""


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
