"""The memory in which a model's layers are computed: llama.cpp's compute buffers. Pure.

Each device has one such buffer. It computes the layers that are there one stage after the other,
so the widest stage determines its size: some values for each token of a batch, and the attention
masks that this stage or a later one reads. Which stages are on a device depends on the placement:
the experts of a layer may be in RAM, and attention on the GPU.

The figures follow llama.cpp's allocator (ggml-alloc) and its scheduler, and were fitted to what
llama-server b10434 reports; tests/client/models has the comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from .load import F16_BYTES, F32_BYTES, Load, cells_of
from .shape import ModelShape, Purpose

_FUSED_GATE: Final = frozenset({"phi3"})
_SECOND_NORM: Final = frozenset({"gemma2", "deepseek2"})
# With all layers on several GPUs llama.cpp has them work on four batches at a time: so many more
# copies of the masks, and of the tokens' states on the first GPU and on the others (as measured).
_MORE_MASKS: Final = 3
_FIRST_STATES: Final = 12
_LATER_STATES: Final = 3
_INPUT_STATES: Final = 2  # in RAM, where tokens become states for the first GPU


class Stages(msgspec.Struct, frozen=True):
    """The bytes of one layer's stages for a batch. `mixing`: attention, or a recurrent block.
    `feed_forward`: what computes every token; `experts`: the chosen ones. `mask`: that of its
    attention, which all layers with the same `windowed` share."""

    mixing: float
    feed_forward: float = 0.0
    experts: float = 0.0
    mask: float = 0.0
    windowed: bool = False


class Scratch(msgspec.Struct, frozen=True):
    """What computing a model takes, by layer. `stream`: the states of a batch's tokens. `logits`:
    where the output is, at most. `outputs`: what callers are given, always in RAM. `reuses`:
    whether the memory of masks that nobody reads any more serves for other things; the gaps may be
    too small for them. Sizes are bytes, to be multiplied by `factor`."""

    layers: tuple[Stages, ...]
    stream: float = 0.0
    logits: float = 0.0
    outputs: float = 0.0
    reuses: bool = True
    factor: float = 1.0

    @property
    def every(self) -> int:
        """The number of layers, the output included."""
        return len(self.layers) + 1

    @property
    def alone(self) -> int:
        """The bytes if all is in RAM."""
        return self.in_ram(self.every)

    def scaled(self, factor: float) -> Scratch:
        """Return the same, so many times as large."""
        return replace(self, factor=self.factor * factor)

    def on_gpu(self, layers: range, cpu_moe: int = 0, *, pipelined: bool = False) -> int:
        """Return the bytes on a GPU that has these layers, where the experts of the first
        `cpu_moe` layers are in RAM. The output is the layer after all others.

        `pipelined`: it works on several batches at a time, as other GPUs do.
        """
        blocks = range(layers.start, min(layers.stop, len(self.layers)))
        masks = {} if self.reuses else self._masks(blocks)
        read = sum(masks.values())
        widest = self.logits if len(self.layers) in layers else 0.0
        done: set[tuple[int, bool]] = set()  # most layers are alike
        for i in reversed(blocks):
            at, experts_here = self.layers[i], i >= cpu_moe
            if (id(at), experts_here) in done:
                continue
            widest = max(widest, read + max(at.feed_forward, at.experts * experts_here))
            if at.mask > masks.get(at.windowed, 0.0):
                masks[at.windowed] = at.mask
                read = sum(masks.values())
                done.clear()
            else:
                done.add((id(at), experts_here))
            widest = max(widest, read + at.mixing)
        if pipelined:
            states = _FIRST_STATES if layers.start == 0 else _LATER_STATES
            widest += _MORE_MASKS * read + states * self.stream
        return int(widest * self.factor)

    def in_ram(self, layers: int, cpu_moe: int = 0, *, gpus: int = 1) -> int:
        """Return the bytes in RAM, where the first `layers` layers are, and the experts of the
        first `cpu_moe` ones; the rest is on so many GPUs."""
        masks = sum(self._masks(range(len(self.layers))).values())
        widest = _INPUT_STATES * self.stream
        if layers > len(self.layers):
            widest = max(widest, self.logits)
        for at in _kinds(self.layers[:layers]):
            # the states of the layer before are kept beside; on a GPU they are a copy
            wide = max(at.feed_forward, at.experts) + self.stream
            widest = max(widest, at.mixing, wide)
        for at in _kinds(self.layers[layers:cpu_moe]):
            # the masks lie there until the last GPU has its copy of them
            gap = masks if self.reuses and not layers and gpus == 1 else 0.0
            widest = max(widest, self._in_gap(at.experts - self.stream, gap))
        return int((masks + widest + self.outputs) * self.factor)

    def _masks(self, layers: range) -> dict[bool, float]:
        """Return the bytes of the masks that these layers read."""
        kinds = _kinds(self.layers[layers.start : layers.stop])
        return {at.windowed: at.mask for at in kinds if at.mask}

    def _in_gap(self, experts: float, gap: float) -> float:
        """Return what experts take beside a gap. Gate, up and their product go there as far as
        whole ones fit, after the inputs."""
        third = (experts - 2 * self.stream) / 3
        fit = max(0.0, gap - _INPUT_STATES * self.stream) // third if third > 0 else 0.0
        return experts - min(3, fit) * third


def _kinds(layers: Sequence[Stages]) -> Iterable[Stages]:
    """Return each different one: layers that are alike have the same object."""
    return {id(at): at for at in layers}.values()


def scratch_of(shape: ModelShape, load: Load, *, most: bool = False) -> Scratch:
    """Return what computing takes, as measured; with `most`: the most that other builds took,
    which keep one more copy of the tokens' states, or reserve logits for every token of a batch."""
    batch_bytes = load.batch_tokens * F32_BYTES
    stream = shape.embedding * batch_bytes
    width = shape.vocabulary if shape.purpose is Purpose.CHAT else shape.embedding
    more = stream if most else 0
    alike: dict[tuple[bool, ...], Stages] = {}
    layers = []
    for layer, heads in enumerate(shape.kv_heads):
        last = layer == shape.blocks - 1
        kind = heads > 0, layer in shape.window_layers, layer >= shape.leading_dense, last
        if kind not in alike:
            alike[kind] = _stages(shape, load, layer, more, most=most)
        layers.append(alike[kind])
    return Scratch(
        tuple(layers),
        stream,
        logits=shape.vocabulary * batch_bytes + 2 * stream if most and not shape.encoder else 0.0,
        outputs=width * load.slots * F32_BYTES,
        reuses=not most,
    )


def _stages(shape: ModelShape, load: Load, layer: int, more: float, *, most: bool) -> Stages:
    if shape.encoder:
        return _encoder_stages(shape, load, most=most)
    batch_bytes = load.batch_tokens * F32_BYTES
    embedding, heads = shape.embedding, shape.heads
    cells, window_cells = cells_of(shape, load)
    windowed = layer in shape.window_layers
    mixing = mask = 0.0
    if shape.kv_heads[layer]:
        keys = max(shape.kv_heads) * (shape.key_length + shape.value_length)
        head = shape.key_length + shape.value_length + shape.query_length
        values = heads * head + keys + 2 * embedding
        read = window_cells if windowed else cells
        scores = 0 if load.flash_attention else read * heads
        mixing = batch_bytes * (values + scores)
        mask = load.batch_tokens * read * (F16_BYTES if load.flash_attention else F32_BYTES)
    elif shape.recurrent is not None:
        mixing = batch_bytes * (6 * shape.recurrent.inner + embedding)
    feed_forward = experts = 0.0
    # Of the last layer only the tokens are computed whose logits somebody reads.
    last = layer == shape.blocks - 1 and shape.purpose is Purpose.CHAT
    if any(shape.kv_heads) and not last:
        mixed = shape.expert_count > 0 and layer >= shape.leading_dense
        wide, chosen = shape.dense_width, shape.experts_used * shape.expert_width
        if mixed:
            experts = batch_bytes * (3 * chosen + 3 * embedding) + more
            wide = shape.shared_width
        feed_forward = batch_bytes * _wide_values(shape, wide, mixed=mixed) + more if wide else 0.0
    return Stages(mixing + more, feed_forward, experts, mask, windowed)


def _encoder_stages(shape: ModelShape, load: Load, *, most: bool) -> Stages:
    """Return the stages of a model without a cache, whose tokens attend to one batch.

    Its feed-forward part has no gate, or, in builds of newer families, one.
    """
    batch, embedding = load.batch_tokens, shape.embedding
    wide = max(shape.dense_width, shape.experts_used * shape.expert_width)
    mask = batch * batch * (F16_BYTES if load.flash_attention else F32_BYTES * (1 + shape.heads))
    values = 3 * wide + 4 * embedding if most else max(wide + 2 * embedding, 4 * embedding)
    return Stages(0.0, batch * values * F32_BYTES, mask=mask)


def _wide_values(shape: ModelShape, wide: int, *, mixed: bool) -> int:
    """Return how many values per token exist at once in a feed-forward part of this width.

    It has gate, up, their product, and three copies of the stream; one less if gate and up are one
    matrix, or if a narrow gate fits into the space that the stream's norm left. With the second
    norms of `_SECOND_NORM` two gates fit there. `mixed`: beside experts, where neither is so.
    """
    embedding = shape.embedding
    narrow = wide <= 2 * embedding and not mixed
    if narrow and shape.architecture in _SECOND_NORM:
        return 2 * wide + 3 * embedding
    if shape.architecture in _FUSED_GATE or (narrow and not shape.experts_used):
        return 3 * wide + 2 * embedding
    return 3 * wide + 3 * embedding
