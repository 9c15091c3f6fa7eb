"""Estimate the memory that vLLM needs for a model, by its config.json, and compare it with a GPU.

Pure. vLLM takes a share of one GPU for weights, activations and a pool for K/V blocks; the share is
chosen so that the pool holds every slot's context. Sliding windows and layers without attention are
counted as full attention, which is too much rather than too little. No figure here was measured.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from .estimate import Estimate
from .fit import Fit
from .hardware import Gpu, Hardware
from .model_config import ModelConfig
from .placement import FitVerdict, Placement, Share
from .space import NOTHING, Space

# Beside weights and K/V: the CUDA context, activations of a batch of 2048 tokens, CUDA graphs.
# Allowances of vLLM's documentation, not measured.
OVERHEAD_LOW_BYTES: Final = 1 << 30
OVERHEAD_HIGH_BYTES: Final = 3 << 30
WEIGHTS_FACTOR: Final = 1.02  # tensors are padded when they are loaded
MOST_SHARE: Final = 0.98  # of a GPU; the driver keeps some
BLOCK_TOKENS: Final = 16  # vLLM's pool has blocks of so many


class VllmFit(msgspec.Struct, frozen=True):
    """How a model fits, and the share of the GPU that vLLM is to take; None: it does not fit."""

    fit: Fit
    share: float | None


def fit_vllm(
    config: ModelConfig,
    weights_bytes: int,
    context_tokens: int,
    slots: int,
    hardware: Hardware,
    *,
    eight_bit: bool = False,
) -> VllmFit:
    """Return how so many slots fit the machine's first GPU, which is vLLM's."""
    weights = int(weights_bytes * WEIGHTS_FACTOR)
    cache = config.cache_bytes(context_tokens * slots, eight_bit=eight_bit)
    need = weights + cache + OVERHEAD_HIGH_BYTES
    gpu = hardware.gpus[0] if hardware.gpus else None
    room = usable_bytes(gpu)
    per_token = config.cache_bytes(slots, eight_bit=eight_bit) or 1
    most = max(0, room - weights - OVERHEAD_HIGH_BYTES) // per_token
    largest = min(config.context_trained, most // BLOCK_TOKENS * BLOCK_TOKENS)
    fits = need <= room
    share = None
    if fits and gpu is not None:
        wanted = math.ceil(100.0 * need / gpu.total_bytes) / 100.0
        share = min(wanted, math.floor(100.0 * room / gpu.total_bytes) / 100.0)
    found = Fit(
        verdict=FitVerdict.GPU if fits else FitVerdict.NO,
        estimate=Estimate(weights, cache, OVERHEAD_LOW_BYTES, OVERHEAD_HIGH_BYTES),
        largest_context=largest,
        placement=Placement((Share(gpu.number, "", config.layers),) if fits and gpu else ()),
        space=Space((need,)) if fits else NOTHING,
        low_bytes=weights + cache + OVERHEAD_LOW_BYTES,
        high_bytes=need,
        reason="" if fits else _reason(need, gpu, room),
    )
    return VllmFit(found, share)


def usable_bytes(gpu: Gpu | None) -> int:
    """What vLLM may take of a GPU."""
    return 0 if gpu is None else min(gpu.free_bytes, int(gpu.total_bytes * MOST_SHARE))


def _reason(need: int, gpu: Gpu | None, room: int) -> str:
    if gpu is None:
        return "vLLM needs a GPU, and this node has none that its driver tells of"
    gib = 1 << 30
    return f"it needs up to {need / gib:.1f} GiB of GPU memory, and {room / gib:.1f} GiB are free"
