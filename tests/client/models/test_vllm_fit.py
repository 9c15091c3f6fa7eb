"""What vLLM needs by a config.json, and which files of a repository it gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.fake_vllm import repository
from wai_node.models.hardware import Gpu, Hardware
from wai_node.models.model_config import read_config
from wai_node.models.placement import FitVerdict
from wai_node.models.snapshot import ListedFile, Listing, needed, weights_bytes
from wai_node.models.vllm_fit import MOST_SHARE, OVERHEAD_HIGH_BYTES, fit_vllm
from wai_protocol.errors import RequestError

GIB = 1 << 30
# Qwen3-8B's and DeepSeek-V3's, as their repositories have them.
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "hidden_size": 4096,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
DEEPSEEK: dict[str, Any] = {
    **QWEN3,
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}


def box(free_gib: float, total_gib: float = 80.0) -> Hardware:
    gpus = (Gpu("H", "nvidia", int(total_gib * GIB), int(free_gib * GIB)),) if total_gib else ()
    return Hardware(gpus, 64 * GIB, 32 * GIB, "cpu", 8)


def test_the_cache_is_that_of_the_heads_or_of_the_latent_vector() -> None:
    assert read_config(QWEN3).cache_bytes(1) == 36 * 2 * 8 * 128 * 2  # 147,456: 144 KiB a token
    assert read_config(DEEPSEEK).cache_bytes(1) == 61 * (512 + 64) * 2
    assert read_config(QWEN3).cache_bytes(1, eight_bit=True) == 36 * 2 * 8 * 128
    bare = {name: value for name, value in QWEN3.items() if name not in ("head_dim", "torch_dtype")}
    assert read_config(bare).cache_bytes(1) == 36 * 2 * 8 * 128 * 2
    seeing = {"architectures": ["SeeingModel"], "text_config": QWEN3}
    assert read_config(seeing).kv_values == read_config(QWEN3).kv_values


def test_the_share_holds_every_slots_context_and_no_more() -> None:
    config, weights = read_config(QWEN3), 16 * GIB
    found = fit_vllm(config, weights, 8192, 4, box(79.0))
    need = int(weights * 1.02) + 4 * 8192 * 147_456 + OVERHEAD_HIGH_BYTES
    assert found.fit.high_bytes == need
    assert found.share == pytest.approx(need / (80 * GIB), abs=0.0101)
    assert found.fit.verdict is FitVerdict.GPU
    half = fit_vllm(config, weights, 8192, 4, box(79.0), eight_bit=True)
    assert half.fit.estimate.cache * 2 == found.fit.estimate.cache


def test_what_does_not_fit_says_how_long_a_context_would() -> None:
    config = read_config(QWEN3)
    found = fit_vllm(config, 16 * GIB, 40960, 8, box(24.0))
    assert (found.share, found.fit.verdict) == (None, FitVerdict.NO)
    assert "24.0 GiB are free" in found.fit.reason
    largest = found.fit.largest_context
    assert fit_vllm(config, 16 * GIB, largest, 8, box(24.0)).share is not None
    assert fit_vllm(config, 16 * GIB, largest + 32, 8, box(24.0)).share is None
    assert fit_vllm(config, 16 * GIB, 512, 1, box(0, 0)).fit.reason.startswith("vLLM needs a GPU")


@given(
    st.integers(0, 1 << 40),
    st.integers(1, 1 << 17),
    st.integers(1, 64),
    st.floats(0.0, 80.0),
)
def test_a_share_never_takes_more_than_is_free(
    weights: int, context: int, slots: int, free: float
) -> None:
    found = fit_vllm(read_config(QWEN3), weights, context, slots, box(free))
    if found.share is not None:
        assert found.share <= MOST_SHARE
        assert found.share * 80 * GIB <= free * GIB + 1


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": 0},
        {"num_attention_heads": True},
        {"num_hidden_layers": 1 << 40},
        {"max_position_embeddings": "long"},
        {"head_dim": None, "hidden_size": -1},
        {"kv_lora_rank": 5, "qk_rope_head_dim": None},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"config\.json has no"):
        read_config({**QWEN3, **change})


def listing(*files: tuple[str, int, str | None]) -> Listing:
    return Listing("a/b", "c", gated=False, files=tuple(ListedFile(*f, "0" * 40) for f in files))


SHA = "a" * 64


def test_only_data_is_taken_and_of_two_sets_of_weights_the_sharded_one() -> None:
    rows = [(path, len(data), SHA) for path, data in repository().items()]
    weights, small = needed(listing(*rows))
    assert [file.path for file in weights] == ["model.safetensors"]
    assert [f.path for f in small] == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    twice = (("consolidated.safetensors", 9, SHA), ("model-00001-of-00002.safetensors", 5, SHA))
    more = (*twice, ("model-00002-of-00002.safetensors", 5, SHA), ("config.json", 2, None))
    weights, _ = needed(listing(*more))
    assert weights_bytes(tuple(f.path for f in weights), tuple(f.size_bytes for f in weights)) == 10


@pytest.mark.parametrize(
    "files",
    [
        (),
        (("model.safetensors", 5, SHA),),
        (("config.json", 5, None),),
        (("model.safetensors", 5, None), ("config.json", 5, None)),
        (("../model.safetensors", 5, SHA), ("config.json", 5, None)),
        (("-model.safetensors" * 20, 5, SHA), ("config.json", 5, None)),
        (("model.safetensors", 1 << 60, SHA), ("config.json", 5, None)),
        (("model.safetensors", 5, SHA), ("config.json", 1 << 30, None)),
    ],
)
def test_a_repository_without_what_is_needed_is_refused(
    files: tuple[tuple[str, int, str | None], ...],
) -> None:
    with pytest.raises(RequestError, match="has no safetensors with a config"):
        needed(listing(*files))
