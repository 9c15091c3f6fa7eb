"""A model's shape: the numbers in its GGUF metadata that determine how much memory it takes.

Pure. Differences between architectures are known (sliding windows, experts, MLA, recurrent state).
An unknown architecture is read as a plain transformer, which rather overestimates.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec

from wai_protocol.errors import Fault, RequestError

from .gguf_header import LongArray, Value

MAX_BLOCKS: Final = 1024  # the deepest models have some 130
MAX_SIZE: Final = 1 << 24  # any width, head or token count of one model; keeps sums in 64 bits

# architecture → n: every n-th layer attends to all tokens, the others to a window (llama.cpp's
# set_swa_pattern). A pattern in the metadata takes precedence.
_WINDOW_PATTERNS: Final = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma4": 6,
    "gpt-oss": 2,
    "cohere2": 4,
    "exaone4": 4,
    "olmo2": 4,
    "llama4": 4,
}
# All but every n-th layer use linear attention, if the metadata does not say which.
_RECURRENT_INTERVAL: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
_RECURRENT_ONLY: Final = frozenset({"mamba", "mamba2"})
# These read a whole text at once and keep no cache (llama.cpp's llama_model::create_memory).
_ENCODERS: Final = frozenset(
    {
        *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"),
        *("neo-bert", "modern-bert", "gemma-embedding", "eurobert"),
    }
)


class Purpose(enum.Enum):
    """What a model is for; the value is what people read."""

    CHAT = "chat"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class Pooling(enum.IntEnum):
    """How the tokens' states become one answer (`enum llama_pooling_type`)."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    RANK = 4


class Recurrent(msgspec.Struct, frozen=True):
    """A recurrent layer's sizes: convolution kernel, inner width, state per channel, groups."""

    kernel: int
    inner: int
    state: int
    groups: int

    @property
    def values_per_sequence(self) -> int:
        """The F32 values that one layer keeps for one sequence (llama.cpp: n_embd_r + n_embd_s)."""
        conv = max(0, self.kernel - 1) * (self.inner + 2 * self.groups * self.state)
        return conv + self.state * self.inner


class ModelShape(msgspec.Struct, frozen=True):
    """The sizes of a model.

    `kv_heads` has an item per layer; 0 is a layer without a cache. `window_layers` are the layers
    that attend to the last `window` tokens only. `value_cached` is False with MLA, where K holds
    both, and queries of `query_length` become longer ones (0: no MLA). `encoder`: it has no cache.
    `expert_count`, `expert_width`: the experts of each layer from `leading_dense` on, of which a
    token uses `experts_used`; all tokens use `shared_width` beside them. `dense_width`: the
    feed-forward part of the other layers.
    """

    architecture: str
    context_trained: int
    embedding: int
    heads: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    value_cached: bool
    query_length: int
    window: int
    window_layers: frozenset[int]
    vocabulary: int
    recurrent: Recurrent | None
    recurrent_layers: frozenset[int]
    experts_used: int = 0
    expert_count: int = 0
    expert_width: int = 0
    shared_width: int = 0
    leading_dense: int = 0
    dense_width: int = 0
    encoder: bool = False
    pooling: Pooling = Pooling.NONE

    @property
    def purpose(self) -> Purpose:
        """What it is for, by how it pools."""
        if self.pooling is Pooling.RANK:
            return Purpose.RERANK
        pools = self.encoder or self.pooling is not Pooling.NONE
        return Purpose.EMBEDDING if pools else Purpose.CHAT

    @property
    def reads_whole(self) -> bool:
        """Whether a text must be read in one batch: all but the last token's state count."""
        return self.purpose is not Purpose.CHAT and self.pooling is not Pooling.LAST

    @property
    def blocks(self) -> int:
        """The number of layers."""
        return len(self.kv_heads)


_POOLINGS: Final = frozenset(Pooling)


class _Keys:
    """Reads and checks the architecture's keys, since headers are untrusted."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self.metadata = metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not 0 < len(architecture) <= 64:
            raise _unfit("it does not name its architecture")
        self.architecture = architecture

    def get(self, name: str) -> Value | None:
        return self.metadata.get(f"{self.architecture}.{name}")

    def size(self, name: str, default: int = 0) -> int:
        """Return a count; the largest one if the file has a value per layer."""
        value = self.get(name)
        if value is None:
            return default
        return max(_sizes(value, name), default=0)

    def by_layer(self, name: str, blocks: int, default: int) -> tuple[int, ...]:
        value = self.get(name)
        if value is None:
            return (default,) * blocks
        sizes = _sizes(value, name)
        if not isinstance(value, tuple):
            return sizes * blocks
        if len(sizes) < blocks:
            raise _unfit(f"{name} has {len(sizes)} values for {blocks} layers")
        return sizes[:blocks]


def _sizes(value: Value, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    sizes = tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool))
    if len(sizes) != len(values) or not all(0 <= size <= MAX_SIZE for size in sizes):
        raise _unfit(f"{name} is not a sensible size")
    return sizes


def _unfit(what: str) -> RequestError:
    return RequestError(
        f"the memory that the model needs can't be estimated: {what}; "
        "choose a GGUF of a language model made by llama.cpp's own converter",
        Fault.BAD_REQUEST,
    )


def shape_from_metadata(metadata: Mapping[str, Value]) -> ModelShape:
    """Return the shape in a header's metadata, complete or up to its vocabulary.

    Raises `RequestError` if a value that an estimate needs is missing or makes no sense.
    """
    keys = _Keys(metadata)
    blocks, embedding = keys.size("block_count"), keys.size("embedding_length")
    if not 0 < blocks <= MAX_BLOCKS or not embedding:
        raise _unfit("it is no language model, or its number of layers is missing")
    heads = keys.size("attention.head_count")
    head_dim = embedding // heads if heads else 0
    recurrent = _recurrent(keys)
    kv_heads = _kv_heads(keys, blocks, heads)
    recurrent_layers = frozenset(i for i, n in enumerate(kv_heads) if n == 0)
    mla = keys.size("attention.key_length_mla")
    window, window_layers = _window(keys, blocks)
    return ModelShape(
        architecture=keys.architecture,
        context_trained=keys.size("context_length", 4096),
        embedding=embedding,
        heads=heads,
        kv_heads=kv_heads,
        key_length=keys.size("attention.key_length", head_dim),
        value_length=keys.size("attention.value_length", head_dim),
        value_cached=not mla,
        query_length=mla,
        window=window,
        window_layers=window_layers,
        vocabulary=_vocabulary(keys),
        recurrent=recurrent,
        recurrent_layers=recurrent_layers if recurrent else frozenset(),
        experts_used=keys.size("expert_used_count"),
        expert_count=keys.size("expert_count"),
        expert_width=_expert_width(keys),
        shared_width=_shared_width(keys),
        leading_dense=keys.size("leading_dense_block_count"),
        dense_width=keys.size("feed_forward_length"),
        encoder=keys.architecture in _ENCODERS,
        pooling=_pooling(keys),
    )


def _pooling(keys: _Keys) -> Pooling:
    value = keys.get("pooling_type")
    if isinstance(value, bool) or not isinstance(value, int) or value not in _POOLINGS:
        return Pooling.NONE
    return Pooling(value)


def _kv_heads(keys: _Keys, blocks: int, heads: int) -> tuple[int, ...]:
    if keys.architecture in _RECURRENT_ONLY | _ENCODERS:
        return (0,) * blocks
    per_layer = keys.by_layer("attention.head_count_kv", blocks, heads)
    default = _RECURRENT_INTERVAL.get(keys.architecture, 0)
    interval = keys.size("full_attention_interval", default)
    if interval:
        return tuple(n if i % interval == interval - 1 else 0 for i, n in enumerate(per_layer))
    return per_layer


def _expert_width(keys: _Keys) -> int:
    return keys.size("expert_feed_forward_length") or keys.size("feed_forward_length")


def _shared_width(keys: _Keys) -> int:
    told = keys.size("expert_shared_feed_forward_length")
    return told or keys.size("expert_shared_count") * _expert_width(keys)


def _window(keys: _Keys, blocks: int) -> tuple[int, frozenset[int]]:
    window = keys.size("attention.sliding_window")
    pattern = keys.get("attention.sliding_window_pattern")
    if not window:
        return 0, frozenset()
    if isinstance(pattern, tuple):
        return window, frozenset(i for i, on in enumerate(pattern[:blocks]) if on is True)
    every = pattern if isinstance(pattern, int) else _WINDOW_PATTERNS.get(keys.architecture, 0)
    if every <= 1:  # llama.cpp ignores the window of phi3 and mistral
        return 0, frozenset()
    return window, frozenset(i for i in range(blocks) if i % every < every - 1)


def _vocabulary(keys: _Keys) -> int:
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, LongArray):
        return min(tokens.count, MAX_SIZE)
    return keys.size("vocab_size")


def _recurrent(keys: _Keys) -> Recurrent | None:
    inner = keys.size("ssm.inner_size")
    if not inner:
        return None
    groups = keys.size("ssm.group_count") if keys.architecture != "mamba" else 0
    return Recurrent(keys.size("ssm.conv_kernel"), inner, keys.size("ssm.state_size"), groups)
