"""Compare what a model takes with what a node has: whether it fits, where, and how much context.

Pure. `estimate` says what the buffers take, `placement` where the layers go.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
from msgspec.structs import replace

from .estimate import (
    HIGH_FACTOR,
    NO_CORRECTION,
    PROCESS_HIGH_BYTES,
    PROCESS_LOW_BYTES,
    Correction,
    Estimate,
    estimate,
)
from .hardware import Hardware
from .layout import Layout, layout_by_shape
from .load import CELL_STEP, Load, batch_for, layer_caches
from .placement import ANYWHERE, Costs, FitVerdict, Placement, Wanted, computing, place, space_of
from .scratch import scratch_of
from .shape import ModelShape
from .space import Space

GPU_LOW_BYTES: Final = 150 << 20  # the lower part of GPUStack's allowance
GPU_HIGH_BYTES: Final = 650 << 20  # GPUStack's allowance, 150 + 500 MiB; not measured on a GPU here
RAM_KEPT_FREE: Final = 0.08  # of all RAM, for the system: full use would swap


class Fit(msgspec.Struct, frozen=True):
    """The result of `fit`.

    `estimate`: of all its buffers, wherever they are. `largest_context`: the most tokens per slot
    with the same or a better `verdict`, at most what the model was trained for; 0 if nothing fits.
    `space`: what it takes where it is placed.
    """

    verdict: FitVerdict
    estimate: Estimate
    largest_context: int
    placement: Placement
    space: Space
    low_bytes: int
    high_bytes: int
    reason: str


def fit(
    shape: ModelShape,
    weights_bytes: int,
    load: Load,
    hardware: Hardware,
    correction: Correction = NO_CORRECTION,
    wanted: Wanted = ANYWHERE,
    layout: Layout | None = None,
) -> Fit:
    """Return how `load` fits `hardware`, judged by the upper end of the estimate.

    `wanted`: so it is placed, whatever would be best. `layout`: the model's, None: by its shape.
    """
    layout = layout or layout_by_shape(shape, weights_bytes)
    costs = costs_of(shape, weights_bytes, layout, load, correction)
    verdict, placement = place(costs, hardware, _room(hardware), wanted)
    found = estimate_placed(shape, weights_bytes, load, placement, correction)
    used = len(placement.shares)
    return Fit(
        verdict=verdict,
        estimate=found,
        largest_context=_largest_context(
            *(shape, weights_bytes, layout, load, hardware, correction, verdict, wanted)
        ),
        placement=placement,
        space=space_of(placement, costs, unified=hardware.unified_memory),
        low_bytes=found.low + GPU_LOW_BYTES * used,
        high_bytes=found.high + GPU_HIGH_BYTES * used,
        reason=_reason(verdict, found, hardware, placement, shape.blocks),
    )


def best_place(
    shape: ModelShape,
    weights_bytes: int,
    load: Load,
    hardware: Hardware,
    correction: Correction = NO_CORRECTION,
    wanted: Wanted = ANYWHERE,
    layout: Layout | None = None,
) -> Placement | None:
    """Return where `load` goes on `hardware`, as `fit` says; None if it fits nowhere."""
    layout = layout or layout_by_shape(shape, weights_bytes)
    costs = costs_of(shape, weights_bytes, layout, load, correction)
    verdict, placement = place(costs, hardware, _room(hardware), wanted)
    return None if verdict is FitVerdict.NO else placement


def estimate_placed(
    shape: ModelShape,
    weights_bytes: int,
    load: Load,
    placement: Placement | None,
    correction: Correction = NO_CORRECTION,
    layout: Layout | None = None,
    *,
    pipelined: bool | None = None,
) -> Estimate:
    """Return what all buffers together take: each device that computes has scratch memory of its
    own. `layout`: what the weights take that are on GPUs; None: as much as the files.
    `pipelined`: see `computing`."""
    found = estimate(shape, weights_bytes, load, correction)
    if placement is None or not placement.shares:
        return found
    extra = []
    for most in (False, True):
        scratch = scratch_of(shape, load, most=most)
        taken = computing(placement, scratch, pipelined=pipelined)
        extra.append(taken.gpu + taken.ram - scratch.alone)
    # the output that is the embeddings once more is on a GPU, and they are in RAM
    twice = 0 if layout is None else max(0, layout.total - weights_bytes)
    return replace(
        found,
        weights=found.weights + int(twice * correction.weights),
        compute=found.compute + int(extra[0] * correction.compute),
        compute_high=found.compute_high + int(extra[1] * max(1.0, correction.compute)),
    )


def costs_of(
    shape: ModelShape,
    weights_bytes: int,
    layout: Layout,
    load: Load,
    correction: Correction = NO_CORRECTION,
    factor: float = HIGH_FACTOR,
) -> Costs:
    """Return what each part of a model takes at most; with a `factor` of 1, what is expected."""
    found = estimate(shape, weights_bytes, load, correction)
    alone = found
    if load.projector is not None or load.draft is not None:
        without = replace(load, projector=None, draft=None)
        alone = estimate(shape, weights_bytes, without, correction)
    most = factor > 1
    beside = found.weights + found.cache - alone.weights - alone.cache
    if most:
        beside += found.compute_high - alone.compute_high
    else:
        beside += found.compute - alone.compute
    corrected = max(1.0, correction.compute) if most else correction.compute
    weights = factor * correction.weights
    cache = [size * load.slots * correction.cache for size in layer_caches(shape, load)]
    blocks = zip(layout.dense, cache, strict=True)
    return Costs(
        dense=(
            *(int(size * weights + kept * factor) for size, kept in blocks),
            int(layout.output * weights),
        ),
        experts=(*(int(size * weights) for size in layout.experts), 0),
        embeddings=int(layout.embeddings * weights),
        scratch=scratch_of(shape, load, most=most).scaled(factor * corrected),
        beside=int(beside * factor),
        process=PROCESS_HIGH_BYTES if most else PROCESS_LOW_BYTES,
        whole=found.high if most else found.buffers,
    )


def free_space(hardware: Hardware) -> Space:
    """Return what models may still take: all that is free, less what is left to the system."""
    room = _room(hardware)
    return Space(ram=room.ram) if hardware.unified_memory else room


def _room(hardware: Hardware) -> Space:
    """Of each GPU, and of the RAM; with unified memory both are of the same."""
    gpus = [0] * (1 + max((card.number for card in hardware.gpus), default=-1))
    for card in hardware.gpus:
        gpus[card.number] = max(0, card.free_bytes - GPU_HIGH_BYTES)
    ram = hardware.ram_available_bytes - int(hardware.ram_total_bytes * RAM_KEPT_FREE)
    return Space(tuple(gpus), ram)


def _with_context(shape: ModelShape, load: Load, context_tokens: int) -> Load:
    """Return `load` with another context, and the batch that goes with it."""
    batch = batch_for(shape, context_tokens)
    return replace(load, context_tokens=context_tokens, batch_tokens=batch)


_ORDER: Final = (FitVerdict.GPU, FitVerdict.PARTIAL, FitVerdict.CPU, FitVerdict.NO)


def _largest_context(
    shape: ModelShape,
    weights_bytes: int,
    layout: Layout,
    load: Load,
    hardware: Hardware,
    correction: Correction,
    verdict: FitVerdict,
    wanted: Wanted,
) -> int:
    """Return the largest multiple of `CELL_STEP` with at least `verdict`; if `load` does not fit
    at all, the largest that fits anywhere."""
    least = _ORDER.index(FitVerdict.CPU if verdict is FitVerdict.NO else verdict)
    room = _room(hardware)

    def fits(steps: int) -> bool:
        tried = _with_context(shape, load, steps * CELL_STEP)
        costs = costs_of(shape, weights_bytes, layout, tried, correction)
        return _ORDER.index(place(costs, hardware, room, wanted)[0]) <= least

    low, high = 0, math.ceil(shape.context_trained / CELL_STEP)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return min(low * CELL_STEP, shape.context_trained)


def _reason(
    verdict: FitVerdict, found: Estimate, hardware: Hardware, placement: Placement, blocks: int
) -> str:
    need = f"{_gib(found.low)}-{_gib(found.high)} GiB"
    available = _gib(hardware.ram_available_bytes)
    match verdict:
        case FitVerdict.GPU | FitVerdict.PARTIAL:
            return f"needs {need}; {_on_gpus(placement, hardware, blocks + 1)}"
        case FitVerdict.CPU:
            return f"needs {need}; runs in RAM, of which {available} GiB are free"
        case FitVerdict.NO:
            return (
                f"needs {need}, and only {available} GiB of RAM are free{_gpu_part(hardware)}; "
                "choose a smaller quantisation or context"
            )


def _on_gpus(placement: Placement, hardware: Hardware, every: int) -> str:
    """Say what is on which GPUs."""
    numbers = " and ".join(str(share.gpu) for share in placement.shares)
    many = len(placement.shares) > 1
    gpus = "the GPU" if len(hardware.gpus) == 1 else f"the GPU{'s' if many else ''} {numbers}"
    fits = "fit" if many or placement.gpu_layers < every else "fits"
    if placement.gpu_layers < every:
        text = f"{placement.gpu_layers} of {every} layers {fits} {gpus}, the rest runs in RAM"
        return f"{text}, as do all experts" if placement.cpu_moe else text
    if placement.cpu_moe:
        return f"{fits} {gpus}, with the experts of {placement.cpu_moe} layers in RAM"
    return f"{fits} {gpus}"


def _gpu_part(hardware: Hardware) -> str:
    free = sum(card.free_bytes for card in hardware.gpus)
    return f", and {_gib(free)} GiB on the GPU" if hardware.gpus else ""


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
