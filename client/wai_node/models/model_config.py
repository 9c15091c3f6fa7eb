"""What the config.json of a repository of safetensors says of a model and its cache. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError

MAX_LAYERS, MAX_WIDTH, MAX_CONTEXT = 1024, 1 << 20, 1 << 27
_BYTES: Final = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}


class ModelConfig(msgspec.Struct, frozen=True):
    """What config.json says of a model. `kv_values`: numbers that one token takes in the cache."""

    architecture: str
    layers: int
    kv_values: int
    value_bytes: float
    context_trained: int

    def cache_bytes(self, tokens: int, *, eight_bit: bool = False) -> int:
        """The cache of so many tokens."""
        return int(tokens * self.kv_values * (1.0 if eight_bit else self.value_bytes))


def read_config(config: dict[str, Any]) -> ModelConfig:
    """Read a config.json. Raises `RequestError` for one that does not describe a language model."""
    text = config.get("text_config")
    of_text = {**config, **text} if isinstance(text, dict) else config
    layers = _count(of_text, "num_hidden_layers", MAX_LAYERS)
    heads = _count(of_text, "num_attention_heads", MAX_WIDTH)
    if _is_count(of_text.get("kv_lora_rank")):  # DeepSeek's latent attention keeps one vector
        width = _count(of_text, "kv_lora_rank", MAX_WIDTH)
        width += _count(of_text, "qk_rope_head_dim", MAX_WIDTH)
    else:
        kv_heads, head = heads, 0
        if _is_count(of_text.get("num_key_value_heads")):
            kv_heads = _count(of_text, "num_key_value_heads", MAX_WIDTH)
        if _is_count(of_text.get("head_dim")):
            head = _count(of_text, "head_dim", MAX_WIDTH)
        width = 2 * kv_heads * (head or _count(of_text, "hidden_size", MAX_WIDTH) // heads)
    dtype = of_text.get("torch_dtype") or of_text.get("dtype")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    return ModelConfig(
        architecture=name[:128],
        layers=layers,
        kv_values=layers * width,
        value_bytes=_BYTES.get(str(dtype), 2.0),
        context_trained=_count(of_text, "max_position_embeddings", MAX_CONTEXT),
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _count(config: dict[str, Any], name: str, most: int) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 < value <= most:
        raise RequestError(
            f"its config.json has no `{name}` that makes sense: the repository has no language"
            " model that this node can reckon with"
        )
    return value
