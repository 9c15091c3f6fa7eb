"""A small GGUF file that a real llama-server loads in a tenth of a second.

Its weights are random but seeded: what it says means nothing, yet the same prompt at temperature 0
gives the same tokens every time. It answers no question about quality, only about moving tokens.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt

CHAT_TEMPLATE: Final = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
# llama-server refuses an SPM vocabulary without these three, in this order.
_SPECIAL: Final = (
    ("<unk>", gguf.TokenType.UNKNOWN),
    ("<s>", gguf.TokenType.CONTROL),
    ("</s>", gguf.TokenType.CONTROL),
)
_SYLLABLES: Final = tuple(a + b + c for a in "bdfgklmnprstvwz" for b in "aeiou" for c in "nrstl")
_WORDS_KEPT: Final = 300
_BIAS: Final = 2.0  # twice any other entry of an embedding: felt after every norm, but not the rest
_FORBIDDEN: Final = 40.0  # the logits lie within ±12: what is put 40 or more below is never drawn
_ASCII_PIECES: Final = (
    "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()[]{}-_/\n"
)


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What the model looks like. The defaults make about 640 KB in F32.

    `context_tokens` is the trained context, which caps llama-server's context per slot. `half`
    writes F16 weights, the only other type that the test llama-server can run here. `title`
    is the name in its metadata, which llama-server prints when it loads.
    """

    name: str = "tiny"
    context_tokens: int = 4096
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    half: bool = False
    seed: int = 1
    chat: bool = True
    title: str = ""
    template: str = CHAT_TEMPLATE


def tiny_gguf(folder: Path, model: TinyModel | None = None) -> Path:
    """The GGUF file for `model`; written to `folder` unless one with its parameters is there."""
    model = model or TinyModel()
    digest = hashlib.sha256(repr(astuple(model)).encode()).hexdigest()[:12]
    path = folder / f"{model.name}-{digest}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{path.name}.{id(model):x}"
        _write(partial, model)
        partial.replace(path)  # two test workers may write the same one: either is whole
    return path


def _write(path: Path, model: TinyModel) -> None:
    writer = gguf.GGUFWriter(str(path), "llama")
    try:
        silent, spoken = _add_vocabulary(writer, template=model.template if model.chat else "")
        _add_shape(writer, model, vocabulary_size=silent + spoken)
        _add_weights(writer, model, silent, spoken)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_vocabulary(writer: Any, *, template: str) -> tuple[int, int]:
    """A SentencePiece vocabulary with byte fallback, so that any text has tokens.

    Returns how many of its pieces the model only reads, and how many (the words, last) it says.
    """
    words = [("▁" + syllable, gguf.TokenType.NORMAL) for syllable in _SYLLABLES[:_WORDS_KEPT]]
    read_only = [
        *_SPECIAL,
        *((f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)),
        *((piece, gguf.TokenType.NORMAL) for piece in _ASCII_PIECES),
    ]
    pieces = read_only + words
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_types([int(kind) for _, kind in pieces])
    # Longer pieces win in SPM when their score is higher; bytes and specials are never merged.
    writer.add_token_scores([-10.0 + len(text) for text, _ in pieces])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template:
        writer.add_chat_template(template)
    return len(read_only), len(words)


def _add_shape(writer: Any, model: TinyModel, *, vocabulary_size: int) -> None:
    writer.add_name(model.title or model.name)
    writer.add_context_length(model.context_tokens)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(model.width // model.heads)
    writer.add_vocab_size(vocabulary_size)
    kind = gguf.LlamaFileType.MOSTLY_F16 if model.half else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(int(kind))


def _add_weights(writer: Any, model: TinyModel, silent: int, spoken: int) -> None:
    """Random weights, but for column 0 of the residual stream, which every token sets and no layer
    touches: through it the output layer puts a bias on the pieces that must not be said (bytes, as
    broken UTF-8 fails llama-server's chat parser; </s>, so that answers run to their max_tokens).
    """
    random = np.random.default_rng(model.seed)
    matrix_type = np.float16 if model.half else np.float32
    kv_width = model.width // model.heads * model.kv_heads

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float64]:
        return random.standard_normal((rows, columns)) / math.sqrt(columns)

    def add(name: str, values: npt.NDArray[np.float64]) -> None:
        writer.add_tensor(f"{name}.weight", values.astype(matrix_type))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(model.width, dtype=np.float32))

    def add_residual(name: str, values: npt.NDArray[np.float64]) -> None:
        values[0] = 0.0
        add(name, values)

    # entries of size 1, so that the last token, more than the bias, decides what comes next
    embedding = math.sqrt(model.width) * matrix(silent + spoken, model.width)
    embedding[:, 0] = _BIAS
    add("token_embd", embedding)
    for layer in range(model.layers):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm")
        add(f"{block}.attn_q", matrix(model.width, model.width))
        add(f"{block}.attn_k", matrix(kv_width, model.width))
        add(f"{block}.attn_v", matrix(kv_width, model.width))
        add_residual(f"{block}.attn_output", matrix(model.width, model.width))
        add_norm(f"{block}.ffn_norm")
        add(f"{block}.ffn_gate", matrix(model.feed_forward, model.width))
        add(f"{block}.ffn_up", matrix(model.feed_forward, model.width))
        add_residual(f"{block}.ffn_down", matrix(model.width, model.feed_forward))
    add_norm("output_norm")
    output = 3 * matrix(silent + spoken, model.width)
    output[:silent, 0] = -_FORBIDDEN
    output[silent:, 0] = 0.0
    add("output", output)
