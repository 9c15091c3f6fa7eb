"""How a model's weights are spread over its layers, and how much of each layer are experts. Pure.

By the sizes of its tensors, or, before those are known, by its shape. llama.cpp keeps the input
embeddings in RAM, and counts the output as one more layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from .gguf_header import TensorInfo
from .shape import ModelShape

_BLOCK: Final = re.compile(r"blk\.(\d{1,4})\.")
# What llama-server keeps in RAM by `--n-cpu-moe` (LLM_FFN_EXPS_REGEX)
_EXPERTS: Final = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch|)exps")
_INPUT: Final = ("token_embd", "token_types", "position_embd", "per_layer_token_embd")
_OUTPUT: Final = "output.weight"


class Layout(msgspec.Struct, frozen=True):
    """Bytes of the weights: `dense` and `experts` by layer, `embeddings`, and `output`, which is
    the embeddings once more if the model has no output of its own."""

    dense: tuple[int, ...]
    experts: tuple[int, ...]
    embeddings: int
    output: int

    def plus(self, size_bytes: int) -> Layout:
        """Return the layout with so much more on all layers alike: an adapter's weights."""
        more = size_bytes // max(1, len(self.dense))
        return replace(self, dense=tuple(size + more for size in self.dense))

    @property
    def total(self) -> int:
        """All of it, with the output on a GPU."""
        return sum(self.dense) + sum(self.experts) + self.embeddings + self.output

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts, a few of which compute a token."""
        return any(self.experts)


def layout_of(tensors: Iterable[TensorInfo], blocks: int) -> Layout | None:
    """Return the layout by all tensors of a model's files; None if one's type is unknown."""
    dense, experts = [0] * blocks, [0] * blocks
    embeddings = output = table = 0
    own_output = False
    for tensor in tensors:
        size = tensor.size_bytes
        if size is None:
            return None
        block = _BLOCK.match(tensor.name)
        if block is not None and int(block[1]) < blocks:
            kind = experts if _EXPERTS.search(tensor.name) else dense
            kind[int(block[1])] += size
        elif tensor.name.startswith(_INPUT):
            embeddings += size
            table = size if tensor.name == "token_embd.weight" else table
        else:
            own_output = own_output or tensor.name == _OUTPUT
            output += size
    if not own_output:
        output += table
    return Layout(tuple(dense), tuple(experts), embeddings, output)


def layout_by_shape(shape: ModelShape, weights_bytes: int) -> Layout:
    """Return the layout by the numbers of weights, as if all had the same precision.

    Whether the output is the embeddings is not known then: it is counted beside them.
    """
    table = shape.vocabulary * shape.embedding
    dense, experts = [], []
    for layer in range(shape.blocks):
        mixed = bool(shape.expert_count) and layer >= shape.leading_dense
        dense.append(_attention(shape, layer) + _feed_forward(shape, mixed=mixed))
        width = shape.expert_count * shape.expert_width
        experts.append(3 * shape.embedding * width if mixed else 0)
    every = sum(dense) + sum(experts)
    part = weights_bytes * table // (table + every) if every else 0
    rest = weights_bytes - part

    def bytes_of(numbers: list[int]) -> tuple[int, ...]:
        if not every:
            return (rest // shape.blocks,) * shape.blocks
        return tuple(rest * count // every for count in numbers)

    return Layout(bytes_of(dense), bytes_of(experts) if every else (0,) * shape.blocks, part, part)


def _attention(shape: ModelShape, layer: int) -> int:
    """The weights of one layer's attention, or of what it has in place of it."""
    if shape.recurrent is not None and layer in shape.recurrent_layers:
        return 3 * shape.embedding * shape.recurrent.inner
    heads, kv_heads = shape.heads, shape.kv_heads[layer] or shape.heads
    keys, values = shape.key_length, shape.value_length
    return shape.embedding * (heads + kv_heads) * (keys + values)


def _feed_forward(shape: ModelShape, *, mixed: bool) -> int:
    """The weights of one layer's feed-forward part that compute every token."""
    if mixed:
        return shape.embedding * (shape.expert_count + 3 * shape.shared_width)
    return 3 * shape.embedding * shape.dense_width
