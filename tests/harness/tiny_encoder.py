"""Tiny random-weight BERT models: one that embeds texts, one that ranks them.

The vectors and scores mean nothing, but llama-server makes them as it does with real models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np

MEAN: Final = 1
RANK: Final = 4
_SIGNS: Final = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True)
class Encoder:
    """The sizes of one model, named as llama.cpp's metadata names them."""

    embedding: int = 64
    blocks: int = 2
    heads: int = 4
    feed_forward: int = 256
    context: int = 512
    pooling: int = MEAN


def write_encoder(path: Path, encoder: Encoder | None = None) -> Path:
    """Write the model to `path`, and return `path`."""
    _Writer(path, encoder or Encoder()).run()
    return path


class _Writer:
    def __init__(self, path: Path, encoder: Encoder) -> None:
        self.encoder = encoder
        self.writer = gguf.GGUFWriter(str(path), "bert")
        self.random = np.random.default_rng(20261129)

    def run(self) -> None:
        writer, e = self.writer, self.encoder
        writer.add_context_length(e.context)
        writer.add_embedding_length(e.embedding)
        writer.add_block_count(e.blocks)
        writer.add_feed_forward_length(e.feed_forward)
        writer.add_head_count(e.heads)
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)
        writer.add_uint32("bert.pooling_type", e.pooling)
        size = self._add_vocabulary()
        self._matrix("token_embd.weight", size, e.embedding)
        self._vector("position_embd.weight", e.context, e.embedding)
        self._vector("token_types.weight", 2, e.embedding)
        self._norm("token_embd_norm")
        for block in range(e.blocks):
            self._add_block(f"blk.{block}.")
        if e.pooling == RANK:
            self._linear("cls", e.embedding, e.embedding)
            self._linear("cls.output", 1, e.embedding)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def _add_vocabulary(self) -> int:
        tokens = [*_SPECIAL, *(f"▁{sign}" for sign in _SIGNS), *_SIGNS]
        control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
        writer = self.writer
        writer.add_tokenizer_model("bert")
        writer.add_token_list(tokens)
        writer.add_token_scores([-1000.0] * len(tokens))
        writer.add_token_types([control] * len(_SPECIAL) + [normal] * (2 * len(_SIGNS)))
        writer.add_token_type_count(2)
        for name, number in (
            *(("padding", 0), ("unknown", 1), ("cls", 2), ("bos", 2)),
            *(("seperator", 3), ("eos", 3), ("mask", 4)),  # llama.cpp spells it so
        ):
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        return len(tokens)

    def _add_block(self, prefix: str) -> None:
        e = self.encoder
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            self._linear(prefix + name, e.embedding, e.embedding)
        self._norm(prefix + "attn_output_norm")
        self._linear(prefix + "ffn_up", e.feed_forward, e.embedding)
        self._linear(prefix + "ffn_down", e.embedding, e.feed_forward)
        self._norm(prefix + "layer_output_norm")

    def _linear(self, name: str, rows: int, columns: int) -> None:
        self._matrix(f"{name}.weight", rows, columns)
        self._vector(f"{name}.bias", rows)

    def _matrix(self, name: str, rows: int, columns: int) -> None:
        values = self.random.standard_normal((rows, columns)) / np.sqrt(columns)
        self.writer.add_tensor(name, values.astype(np.float16))

    def _vector(self, name: str, *dims: int) -> None:
        values = self.random.standard_normal(dims) * 0.02
        self.writer.add_tensor(name, values.astype(np.float32))

    def _norm(self, name: str) -> None:
        size = self.encoder.embedding
        self.writer.add_tensor(f"{name}.weight", np.ones(size, dtype=np.float32))
        self.writer.add_tensor(f"{name}.bias", np.zeros(size, dtype=np.float32))
