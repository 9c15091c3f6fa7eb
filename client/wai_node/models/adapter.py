"""A LoRA adapter in GGUF: whether it is one, and whether it was made for a model. Pure.

llama.cpp refuses an adapter of another architecture or width too, but only after the download, and
with a server that does not start.
"""

from __future__ import annotations

import re
from typing import Final

from wai_protocol.errors import RequestError

from .gguf_header import GgufHeader, TensorInfo
from .shape import ModelShape

MAX_ADAPTER_BYTES: Final = 16 << 30  # of the largest models' largest ranks; they have some 100 MiB
_BLOCK: Final = re.compile(r"blk\.(\d{1,4})\.(\w{1,40})\.weight\.lora_([ab])")
# What reads the stream has its width as an input (A), what writes it as an output (B).
_READS: Final = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_up", "ffn_gate"})
_WRITES: Final = frozenset({"attn_output", "ffn_down"})


def check_adapter(name: str, header: GgufHeader, shape: ModelShape) -> None:
    """Raise `RequestError` unless the file `name` is an adapter for a model of this shape."""
    kind = header.metadata.get("general.type"), header.metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        raise RequestError(
            f"{name} is no LoRA adapter; llama.cpp's convert_lora_to_gguf.py makes one"
        )
    architecture = header.metadata.get("general.architecture")
    if architecture != shape.architecture:
        raise RequestError(
            f"{name} was made for another base model: it adapts {str(architecture)[:64]!r}, and"
            f" this model is {shape.architecture!r}"
        )
    for tensor in header.tensors:
        if (wrong := _wrong(tensor, shape)) is not None:
            raise RequestError(f"{name} was made for another base model: {wrong}")


def _wrong(tensor: TensorInfo, shape: ModelShape) -> str | None:
    """What of a tensor can't belong to a model of this shape."""
    found = _BLOCK.fullmatch(tensor.name)
    if found is None or len(tensor.dimensions) < 2:
        return None
    layer, part, side = int(found[1]), found[2], found[3]
    if layer >= shape.blocks:
        return f"it adapts layer {layer}, and this model has {shape.blocks}"
    width = None
    if side == "a" and part in _READS:
        width = tensor.dimensions[0]
    elif side == "b" and part in _WRITES:
        width = tensor.dimensions[1]
    if width is not None and width != shape.embedding:
        return f"it adapts a width of {width}, and this model's is {shape.embedding}"
    return None
