"""Estimate the memory that llama-server's buffers take for a model.

Pure. The formulas follow llama.cpp's buffers (`scratch` has those in which it computes), and were
fitted to what llama-server b10434 and xllamacpp b11549 report for tiny models of every family in
`tests/harness/tiny_families.py` (tests/client/models/test_fit_against_llama_server.py requires
agreement within 10 %). What earlier starts on this node reported corrects them (`Correction`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from .load import Load, layer_caches
from .projector import Projector
from .scratch import scratch_of
from .shape import ModelShape

# A process's memory beside its buffers: code, vocabulary, HTTP threads, the allocator's slack.
PROCESS_LOW_BYTES: Final = (
    40 << 20
)  # a tiny model's server was seen at 53 MB resident, buffers included
PROCESS_HIGH_BYTES: Final = 400 << 20  # an allowance, not measured: a large vocabulary, and slack
LOW_FACTOR: Final = 0.95  # totals were seen within 1.3 % of a real server's
HIGH_FACTOR: Final = 1.05


class Correction(msgspec.Struct, frozen=True):
    """Ratio of seen to estimated bytes on this node by kind of buffer; 1.0 if nothing was seen."""

    weights: float = 1.0
    cache: float = 1.0
    compute: float = 1.0


NO_CORRECTION: Final = Correction()


class Estimate(msgspec.Struct, frozen=True):
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
    seeing = load.projector or Projector(0, 0, 0)
    low, high = (scratch_of(shape, load, most=most).alone for most in (False, True))
    own = Estimate(
        weights=int((weights_bytes + seeing.weights) * correction.weights),
        cache=int(sum(layer_caches(shape, load)) * load.slots * correction.cache),
        compute=int((low + seeing.compute) * correction.compute),
        compute_high=int((high + seeing.compute_high) * max(1.0, correction.compute)),
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
