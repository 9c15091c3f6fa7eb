"""What determines a model's memory beside its shape: context, slots, number formats. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from wai_protocol.errors import RequestError

from .draft import Draft
from .projector import Projector
from .shape import ModelShape

UBATCH_TOKENS: Final = (
    512  # llama-server's default physical batch, which determines its graph's size
)
CELL_STEP: Final = 256  # llama.cpp rounds a cache up to this many cells per sequence
MIN_CONTEXT: Final = 512
MAX_SLOTS: Final = 256
F16_BYTES, F32_BYTES = 2, 4


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


class Load(msgspec.Struct, frozen=True):
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


def batch_for(shape: ModelShape, context_tokens: int) -> int:
    """Return how many tokens the server has to compute at once."""
    if not shape.reads_whole:
        return UBATCH_TOKENS
    return max(UBATCH_TOKENS, min(context_tokens, shape.context_trained))


def cells_of(shape: ModelShape, load: Load) -> tuple[int, int]:
    """Return how many tokens a slot's cache has room for: in all layers, and in a window."""
    cells = _round_up(min(load.context_tokens, shape.context_trained), CELL_STEP)
    return cells, min(cells, _round_up(shape.window + load.batch_tokens, CELL_STEP))


def layer_caches(shape: ModelShape, load: Load) -> Sequence[float]:
    """Return the bytes of each layer's K/V cache, or of its recurrent state, for one slot."""
    cells, window_cells = cells_of(shape, load)
    per_head = shape.key_length * load.cache_k.bytes_per_value
    if shape.value_cached:
        per_head += shape.value_length * load.cache_v.bytes_per_value
    state = shape.recurrent.values_per_sequence * F32_BYTES if shape.recurrent else 0
    return [
        heads * per_head * (window_cells if layer in shape.window_layers else cells)
        + state * (layer in shape.recurrent_layers)
        for layer, heads in enumerate(shape.kv_heads)
    ]


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
