"""A tiny random-weight vision projector (CLIP with LLaVA's MLP), for a tiny language model.

What it sees means nothing, but llama-server takes images with it as with a real one.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np

_CLIP: Final = "clip.vision"


@dataclass(frozen=True, slots=True)
class Vision:
    """The sizes of the encoder; `projection` is the width of the language model."""

    projection: int = 64
    image: int = 56
    patch: int = 14
    embedding: int = 32
    blocks: int = 2
    heads: int = 4
    feed_forward: int = 64


def write_projector(path: Path, vision: Vision | None = None) -> Path:
    """Write the projector to `path`, and return `path`."""
    v = vision or Vision()
    writer = gguf.GGUFWriter(str(path), "clip")
    random = np.random.default_rng(20261129)

    def matrix(name: str, *dims: int) -> None:
        values = random.standard_normal(dims) / np.sqrt(np.prod(dims[1:]))
        writer.add_tensor(name, values.astype(np.float16))

    def vector(name: str, *dims: int) -> None:
        writer.add_tensor(name, (random.standard_normal(dims) * 0.02).astype(np.float32))

    def linear(name: str, rows: int, columns: int) -> None:
        matrix(f"{name}.weight", rows, columns)
        vector(f"{name}.bias", rows)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(v.embedding, dtype=np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(v.embedding, dtype=np.float32))

    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)
    writer.add_uint32(f"{_CLIP}.image_size", v.image)
    writer.add_uint32(f"{_CLIP}.patch_size", v.patch)
    writer.add_uint32(f"{_CLIP}.embedding_length", v.embedding)
    writer.add_uint32(f"{_CLIP}.feed_forward_length", v.feed_forward)
    writer.add_uint32(f"{_CLIP}.block_count", v.blocks)
    writer.add_uint32(f"{_CLIP}.projection_dim", v.projection)
    writer.add_uint32(f"{_CLIP}.attention.head_count", v.heads)
    writer.add_float32(f"{_CLIP}.attention.layer_norm_epsilon", 1e-5)
    writer.add_array(f"{_CLIP}.image_mean", [0.5, 0.5, 0.5])
    writer.add_array(f"{_CLIP}.image_std", [0.5, 0.5, 0.5])
    vector("v.class_embd", v.embedding)
    matrix("v.patch_embd.weight", v.embedding, 3, v.patch, v.patch)
    vector("v.position_embd.weight", (v.image // v.patch) ** 2 + 1, v.embedding)
    norm("v.pre_ln")
    for block in range(v.blocks):
        prefix = f"v.blk.{block}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(prefix + name, v.embedding, v.embedding)
        norm(prefix + "ln1")
        norm(prefix + "ln2")
        linear(prefix + "ffn_up", v.feed_forward, v.embedding)
        linear(prefix + "ffn_down", v.embedding, v.feed_forward)
    linear("mm.0", v.projection, v.embedding)
    linear("mm.2", v.projection, v.projection)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def png(size: int = 64) -> bytes:
    """A small picture: a gradient in red and green."""
    rows = b"".join(
        b"\0" + bytes(value for x in range(size) for value in (x * 4 % 256, y * 4 % 256, 0))
        for y in range(size)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
