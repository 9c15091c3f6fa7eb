"""Estimate the memory that llama-server's buffers take for a model.

Pure. The formulas follow llama.cpp's buffers, and were fitted to what llama-server b10434 and
xllamacpp b11549 report for tiny models of every family in `tests/harness/tiny_families.py`
(tests/client/models/test_fit_against_llama_server.py requires agreement within 10 %). What earlier
starts on this node reported corrects them (`Correction`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wai_protocol.errors import RequestError

from .draft import Draft
from .projector import Projector
from .shape import ModelShape, Purpose

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
LOW_FACTOR: Final = 0.95  # totals were seen within 1.3 % of a real server's
HIGH_FACTOR: Final = 1.05
_FUSED_GATE: Final = frozenset({"phi3"})
_SECOND_NORM: Final = frozenset({"gemma2", "deepseek2"})


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


@dataclass(frozen=True, slots=True)
class Load:
    """The settings that determine memory; `context_tokens` is per slot. `batch_tokens`: how many
    are computed at once. `projector`: what lets the model see images. `draft`: its draft model."""

    context_tokens: int
    slots: int = 1
    cache_k: CacheType = CacheType.F16
    cache_v: CacheType = CacheType.F16
    flash_attention: bool = True
    batch_tokens: int = UBATCH_TOKENS
    projector: Projector | None = None
    draft: Draft | None = None

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


def estimate(
    shape: ModelShape, weights_bytes: int, load: Load, correction: Correction = NO_CORRECTION
) -> Estimate:
    """Return the memory that llama-server needs for `load`; the files hold `weights_bytes`."""
    cells, window_cells = cells_of(shape, load)
    low, high = _compute_bytes(shape, load, cells)
    width = shape.vocabulary if shape.purpose is Purpose.CHAT else shape.embedding
    outputs = width * load.slots * F32_BYTES
    seeing = load.projector or Projector(0, 0, 0)
    own = Estimate(
        weights=int((weights_bytes + seeing.weights) * correction.weights),
        cache=int(
            sum(layer_caches(shape, load, cells, window_cells)) * load.slots * correction.cache
        ),
        compute=int((low + outputs + seeing.compute) * correction.compute),
        compute_high=int((high + outputs + seeing.compute_high) * max(1.0, correction.compute)),
    )
    if load.draft is None:
        return own
    # it has the same context and slots, and its cache is F16 in any case
    alone = Load(load.context_tokens, load.slots, flash_attention=load.flash_attention)
    draft = estimate(load.draft.shape, load.draft.weights_bytes, alone, correction)
    return Estimate(
        own.weights + draft.weights,
        own.cache + draft.cache,
        own.compute + draft.compute,
        own.compute_high + draft.compute_high,
    )


def batch_for(shape: ModelShape, context_tokens: int) -> int:
    """Return how many tokens the server has to compute at once."""
    if not shape.reads_whole:
        return UBATCH_TOKENS
    return max(UBATCH_TOKENS, min(context_tokens, shape.context_trained))


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def cells_of(shape: ModelShape, load: Load) -> tuple[int, int]:
    """Return how many tokens a slot's cache has room for: in all layers, and in a window."""
    cells = _round_up(min(load.context_tokens, shape.context_trained), CELL_STEP)
    return cells, min(cells, _round_up(shape.window + load.batch_tokens, CELL_STEP))


def layer_caches(shape: ModelShape, load: Load, cells: int, window_cells: int) -> Sequence[float]:
    """Return the bytes of each layer's K/V cache, or of its recurrent state, for one slot."""
    per_head = shape.key_length * load.cache_k.bytes_per_value
    if shape.value_cached:
        per_head += shape.value_length * load.cache_v.bytes_per_value
    state = shape.recurrent.values_per_sequence * F32_BYTES if shape.recurrent else 0
    return [
        heads * per_head * (window_cells if layer in shape.window_layers else cells)
        + state * (layer in shape.recurrent_layers)
        for layer, heads in enumerate(shape.kv_heads)
    ]


def _compute_bytes(shape: ModelShape, load: Load, cells: int) -> tuple[float, float]:
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
    masks = mask_bytes(shape, load)
    scores = 0.0
    if any(shape.kv_heads):
        scores = 0.0 if load.flash_attention else cells * heads * F32_BYTES
        widest = widest if load.flash_attention else attention
    low = load.batch_tokens * (widest * F32_BYTES + masks + scores)
    # some builds reserve logits for every token of a batch, or keep one more copy of the stream
    other = max(widest + embedding, shape.vocabulary + 2 * embedding)
    high = load.batch_tokens * (other * F32_BYTES + masks + scores)
    return low, max(low, high)


def mask_bytes(shape: ModelShape, load: Load) -> float:
    """Return the bytes for each token of a batch that say which cells it attends to."""
    if not any(shape.kv_heads):
        return 0.0
    cells, window_cells = cells_of(shape, load)
    element = F16_BYTES if load.flash_attention else F32_BYTES
    everywhere = len(shape.window_layers) < shape.blocks
    return float(element * (cells * everywhere + window_cells * bool(shape.window_layers)))


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
