"""Tiny random-weight GGUFs of many architecture families, for the tests of `models.fit`.

Each model is real enough that llama-server loads it and reports its buffers; what it generates is
noise. The shapes are chosen so that the parts of an estimate differ in size (a wrong head count or
a forgotten window shows), not to be fast to run. No network, no randomness between runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

SEED: Final = 20261123
BYTE_TOKENS: Final = 256
SPECIAL_TOKENS: Final = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one tiny model, named as llama.cpp's metadata names them."""

    embedding: int = 256
    blocks: int = 6
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    feed_forward: int = 768
    context: int = 32768
    vocabulary: int = 2048
    experts: int = 4
    experts_used: int = 2
    window: int = 1024


DEFAULT_SHAPE: Final = Shape()


class _Model:
    """A GGUF under construction: keys with the architecture's prefix, seeded tensors."""

    def __init__(self, path: Path, arch: str, shape: Shape, dtype: type[np.generic]) -> None:
        self.writer = gguf.GGUFWriter(path, arch)
        self.arch, self.shape, self.dtype = arch, shape, dtype
        self.random = np.random.default_rng(SEED)
        _add_vocabulary(self.writer, shape.vocabulary)
        self.key("context_length", shape.context)
        self.key("embedding_length", shape.embedding)
        self.key("block_count", shape.blocks)
        self.key("feed_forward_length", shape.feed_forward)

    def key(self, name: str, value: int | float) -> None:
        add: Callable[[str, Any], None] = (
            self.writer.add_float32 if isinstance(value, float) else self.writer.add_uint32
        )
        add(f"{self.arch}.{name}", value)

    def weight(self, name: str, *dims: int) -> None:
        """A matrix in the model's type, a vector in F32; `dims` in numpy's order (rows first)."""
        dtype = self.dtype if len(dims) > 1 else np.float32
        values = self.random.standard_normal(dims, dtype=np.float32) * np.float32(0.05)
        self.writer.add_tensor(name, values.astype(dtype))

    def norm(self, *names: str, size: int) -> None:
        for name in names:
            self.writer.add_tensor(name, np.ones(size, dtype=np.float32))

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    filler = size - len(SPECIAL_TOKENS) - BYTE_TOKENS
    tokens = [
        *SPECIAL_TOKENS,
        *(f"<0x{byte:02X}>" for byte in range(BYTE_TOKENS)),
        *(f"w{i}" for i in range(filler)),
    ]
    kinds = [
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.CONTROL,
        *[gguf.TokenType.BYTE] * BYTE_TOKENS,
        *[gguf.TokenType.NORMAL] * filler,
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _embeddings(m: _Model, *, tied: bool = False) -> None:
    s = m.shape
    m.weight("token_embd.weight", s.vocabulary, s.embedding)
    m.norm("output_norm.weight", size=s.embedding)
    if not tied:
        m.weight("output.weight", s.vocabulary, s.embedding)


def _attention_keys(m: _Model) -> None:
    s = m.shape
    m.key("attention.head_count", s.heads)
    m.key("attention.head_count_kv", s.kv_heads)
    m.key("attention.key_length", s.head_dim)
    m.key("attention.value_length", s.head_dim)
    m.key("attention.layer_norm_rms_epsilon", 1e-5)
    m.key("rope.dimension_count", s.head_dim)


def _attention(m: _Model, p: str, *, bias: bool = False, qk_norm: bool = False) -> None:
    s = m.shape
    m.norm(p + "attn_norm.weight", size=s.embedding)
    for name, heads in (("attn_q", s.heads), ("attn_k", s.kv_heads), ("attn_v", s.kv_heads)):
        m.weight(p + name + ".weight", heads * s.head_dim, s.embedding)
        if bias:
            m.weight(p + name + ".bias", heads * s.head_dim)
    m.weight(p + "attn_output.weight", s.embedding, s.heads * s.head_dim)
    if qk_norm:
        m.norm(p + "attn_q_norm.weight", p + "attn_k_norm.weight", size=s.head_dim)


def _feed_forward(m: _Model, p: str) -> None:
    s = m.shape
    m.norm(p + "ffn_norm.weight", size=s.embedding)
    m.weight(p + "ffn_gate.weight", s.feed_forward, s.embedding)
    m.weight(p + "ffn_up.weight", s.feed_forward, s.embedding)
    m.weight(p + "ffn_down.weight", s.embedding, s.feed_forward)


def _experts(m: _Model, p: str, width: int) -> None:
    s = m.shape
    m.norm(p + "ffn_norm.weight", size=s.embedding)
    m.weight(p + "ffn_gate_inp.weight", s.experts, s.embedding)
    m.weight(p + "ffn_gate_exps.weight", s.experts, width, s.embedding)
    m.weight(p + "ffn_up_exps.weight", s.experts, width, s.embedding)
    m.weight(p + "ffn_down_exps.weight", s.experts, s.embedding, width)


def _expert_keys(m: _Model) -> None:
    m.key("expert_count", m.shape.experts)
    m.key("expert_used_count", m.shape.experts_used)


def _dense(m: _Model, *, bias: bool = False, qk_norm: bool = False) -> None:
    _attention_keys(m)
    _embeddings(m)
    for i in range(m.shape.blocks):
        _attention(m, f"blk.{i}.", bias=bias, qk_norm=qk_norm)
        _feed_forward(m, f"blk.{i}.")


def _gemma(m: _Model, *, qk_norm: bool) -> None:
    s = m.shape
    _attention_keys(m)
    m.key("attention.sliding_window", s.window)
    if not qk_norm:
        m.key("attn_logit_softcapping", 50.0)
        m.key("final_logit_softcapping", 30.0)
    _embeddings(m, tied=True)
    for i in range(s.blocks):
        p = f"blk.{i}."
        _attention(m, p, qk_norm=qk_norm)
        _feed_forward(m, p)
        m.norm(p + "post_attention_norm.weight", p + "post_ffw_norm.weight", size=s.embedding)


def _phi3(m: _Model) -> None:
    s = m.shape
    _attention_keys(m)
    _embeddings(m)
    for i in range(s.blocks):
        p = f"blk.{i}."
        m.norm(p + "attn_norm.weight", p + "ffn_norm.weight", size=s.embedding)
        m.weight(p + "attn_qkv.weight", (s.heads + 2 * s.kv_heads) * s.head_dim, s.embedding)
        m.weight(p + "attn_output.weight", s.embedding, s.heads * s.head_dim)
        m.weight(p + "ffn_up.weight", 2 * s.feed_forward, s.embedding)
        m.weight(p + "ffn_down.weight", s.embedding, s.feed_forward)


def _mixtral(m: _Model) -> None:
    _attention_keys(m)
    _expert_keys(m)
    _embeddings(m)
    for i in range(m.shape.blocks):
        _attention(m, f"blk.{i}.")
        _experts(m, f"blk.{i}.", m.shape.feed_forward)


def _qwen3moe(m: _Model) -> None:
    s = m.shape
    _attention_keys(m)
    _expert_keys(m)
    m.key("expert_feed_forward_length", s.feed_forward // 2)
    _embeddings(m)
    for i in range(s.blocks):
        _attention(m, f"blk.{i}.", qk_norm=True)
        _experts(m, f"blk.{i}.", s.feed_forward // 2)


def _deepseek2(m: _Model) -> None:
    s = m.shape
    q_rank, kv_rank, rope, nope = 96, 64, 32, s.head_dim
    m.key("attention.head_count", s.heads)
    m.key("attention.head_count_kv", 1)  # MLA is stored as one head that all queries share
    m.key("attention.key_length", kv_rank + rope)
    m.key("attention.value_length", kv_rank)
    m.key("attention.key_length_mla", nope + rope)
    m.key("attention.value_length_mla", nope)
    m.key("attention.q_lora_rank", q_rank)
    m.key("attention.kv_lora_rank", kv_rank)
    m.key("attention.layer_norm_rms_epsilon", 1e-5)
    m.key("rope.dimension_count", rope)
    m.key("leading_dense_block_count", 1)
    m.key("expert_feed_forward_length", s.feed_forward // 4)
    m.key("expert_shared_count", 1)
    m.key("expert_weights_scale", 1.0)
    m.key("expert_gating_func", 1)
    m.key("vocab_size", s.vocabulary)
    _expert_keys(m)
    _embeddings(m)
    for i in range(s.blocks):
        p = f"blk.{i}."
        m.norm(p + "attn_norm.weight", size=s.embedding)
        m.weight(p + "attn_q_a.weight", q_rank, s.embedding)
        m.norm(p + "attn_q_a_norm.weight", size=q_rank)
        m.weight(p + "attn_q_b.weight", s.heads * (nope + rope), q_rank)
        m.weight(p + "attn_kv_a_mqa.weight", kv_rank + rope, s.embedding)
        m.norm(p + "attn_kv_a_norm.weight", size=kv_rank)
        m.weight(p + "attn_k_b.weight", s.heads, kv_rank, nope)
        m.weight(p + "attn_v_b.weight", s.heads, nope, kv_rank)
        m.weight(p + "attn_output.weight", s.embedding, s.heads * nope)
        if i == 0:
            _feed_forward(m, p)
            continue
        width = s.feed_forward // 4
        _experts(m, p, width)
        m.weight(p + "ffn_gate_shexp.weight", width, s.embedding)
        m.weight(p + "ffn_up_shexp.weight", width, s.embedding)
        m.weight(p + "ffn_down_shexp.weight", s.embedding, width)


def _mamba(m: _Model) -> None:
    s = m.shape
    inner, state, conv, dt_rank = 2 * s.embedding, 16, 4, s.embedding // 16
    m.key("attention.layer_norm_rms_epsilon", 1e-5)
    m.key("attention.head_count", 0)
    m.key("ssm.conv_kernel", conv)
    m.key("ssm.inner_size", inner)
    m.key("ssm.state_size", state)
    m.key("ssm.time_step_rank", dt_rank)
    _embeddings(m)
    for i in range(s.blocks):
        p = f"blk.{i}."
        m.norm(p + "attn_norm.weight", size=s.embedding)
        m.weight(p + "ssm_in.weight", 2 * inner, s.embedding)
        m.writer.add_tensor(p + "ssm_conv1d.weight", np.ones((inner, conv), dtype=np.float32))
        m.weight(p + "ssm_conv1d.bias", inner)
        m.weight(p + "ssm_x.weight", dt_rank + 2 * state, inner)
        m.weight(p + "ssm_dt.weight", inner, dt_rank)
        m.weight(p + "ssm_dt.bias", inner)
        m.writer.add_tensor(p + "ssm_a", -np.ones((inner, state), dtype=np.float32))
        m.norm(p + "ssm_d", size=inner)
        m.weight(p + "ssm_out.weight", s.embedding, inner)


_BUILDERS: Final[dict[str, tuple[str, Callable[[_Model], None]]]] = {
    "llama": ("llama", _dense),
    "mistral": ("llama", _dense),  # Mistral's GGUFs call themselves llama
    "qwen2": ("qwen2", lambda m: _dense(m, bias=True)),
    "qwen3": ("qwen3", lambda m: _dense(m, qk_norm=True)),
    "gemma2": ("gemma2", lambda m: _gemma(m, qk_norm=False)),
    "gemma3": ("gemma3", lambda m: _gemma(m, qk_norm=True)),
    "phi3": ("phi3", _phi3),
    "mixtral": ("llama", _mixtral),
    "qwen3moe": ("qwen3moe", _qwen3moe),
    "deepseek2": ("deepseek2", _deepseek2),
    "mamba": ("mamba", _mamba),
}
FAMILIES: Final = tuple(_BUILDERS)


def write_family(
    path: Path, family: str, shape: Shape = DEFAULT_SHAPE, dtype: type[np.generic] = np.float16
) -> Path:
    """Write the tiny model of `family` (one of `FAMILIES`) to `path`, and return `path`."""
    arch, build = _BUILDERS[family]
    model = _Model(path, arch, shape, dtype)
    build(model)
    model.close()
    return path
