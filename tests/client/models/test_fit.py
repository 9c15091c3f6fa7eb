"""Verdicts, the largest context, corrections, and shapes of hostile or unusual headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from wai_node.models.buffer_log import SeenBuffers, learn, read_buffers
from wai_node.models.estimate import Correction, estimate
from wai_node.models.fit import estimate_placed, fit
from wai_node.models.gguf_header import LongArray, Value
from wai_node.models.hardware import Gpu, Hardware
from wai_node.models.load import CacheType, Load
from wai_node.models.placement import FitVerdict, Placement, Share
from wai_node.models.shape import ModelShape, shape_from_metadata
from wai_protocol.errors import RequestError

GIB = 1 << 30
LLAMA_8B: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.context_length": 131072,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "tokenizer.ggml.tokens": LongArray(128256),
}
SHAPE: ModelShape = shape_from_metadata(LLAMA_8B)
Q4: int = 4_920_000_000  # Llama 3.1 8B in Q4_K_M


def box(gpu_free_gib: float = 0, ram_free_gib: float = 32, *, unified: bool = False) -> Hardware:
    gpus = (Gpu("g", "nvidia", 80 * GIB, int(gpu_free_gib * GIB)),) if gpu_free_gib else ()
    return Hardware(gpus, 64 * GIB, int(ram_free_gib * GIB), "cpu", 8, unified)


def test_a_known_model_takes_what_is_known_of_it() -> None:
    found = estimate(SHAPE, Q4, Load(8192))
    assert found.cache == GIB  # 8 heads of 2 x 128 numbers in F16, 32 layers, 8192 cells
    assert found.compute < 300 << 20
    assert found.compute_high < 620 << 20


@pytest.mark.parametrize(
    ("hardware", "verdict"),
    [
        (box(24), FitVerdict.GPU),
        (box(5), FitVerdict.PARTIAL),
        (box(0), FitVerdict.CPU),
        (box(0.5), FitVerdict.CPU),
        (box(0, 6), FitVerdict.NO),
        (box(3, 6.5), FitVerdict.NO),
        (box(24, 24, unified=True), FitVerdict.GPU),
        (box(5, 5, unified=True), FitVerdict.NO),
    ],
)
def test_where_a_model_runs(hardware: Hardware, verdict: FitVerdict) -> None:
    found = fit(SHAPE, Q4, Load(8192), hardware)
    assert found.verdict is verdict, found.reason
    layers = {
        FitVerdict.GPU: found.placement.gpu_layers == 33,
        FitVerdict.PARTIAL: 0 < found.placement.gpu_layers < 33,
    }
    assert layers.get(verdict, found.placement.gpu_layers == 0)


@given(st.floats(0, 90), st.floats(1, 60), st.integers(256, 200_000), st.integers(1, 16))
def test_the_largest_context_fits_and_the_next_does_not(
    gpu: float, ram: float, context: int, slots: int
) -> None:
    hardware = box(gpu, ram)
    found = fit(SHAPE, Q4, Load(context, slots), hardware)
    order = [FitVerdict.GPU, FitVerdict.PARTIAL, FitVerdict.CPU, FitVerdict.NO]
    best = order.index(FitVerdict.CPU if found.verdict is FitVerdict.NO else found.verdict)
    largest = found.largest_context
    assert found.low_bytes <= found.high_bytes
    if largest:
        assert order.index(fit(SHAPE, Q4, Load(largest, slots), hardware).verdict) <= best
    if largest < SHAPE.context_trained:
        beyond = fit(SHAPE, Q4, Load(largest + 257, slots), hardware).verdict
        assert order.index(beyond) > best
    if found.verdict is not FitVerdict.NO:
        assert largest + 255 >= min(context, SHAPE.context_trained)


def test_a_smaller_cache_type_takes_less() -> None:
    sizes = [estimate(SHAPE, Q4, Load(8192, 1, t, t)).cache for t in CacheType]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("context", "slots"), [(0, 1), (1024, 0), (1024, 257), (-1, 1)])
def test_a_load_that_makes_no_sense_is_refused(context: int, slots: int) -> None:
    with pytest.raises(RequestError, match="can't be served"):
        Load(context, slots)


def test_what_was_seen_corrects_the_next_estimate_within_bounds() -> None:
    found = estimate(SHAPE, Q4, Load(8192))
    seen = SeenBuffers(found.weights, int(found.cache * 1.2), found.compute * 100, ("CUDA0",))
    correction = learn(seen, found)
    assert (correction.weights, correction.compute) == (1.0, 4.0)
    assert correction.cache == pytest.approx(1.2)
    assert estimate(SHAPE, Q4, Load(8192), correction).cache == pytest.approx(seen.cache, rel=0.01)


def test_a_log_with_several_devices_is_added_up_and_the_dry_run_left_out() -> None:
    seen = read_buffers(
        [
            "load_tensors:        CUDA0 model buffer size =   999.00 MiB",
            "common_fit_params: fitting params to free memory took 0.00 seconds",
            "load_tensors:   CPU_Mapped model buffer size =   100.50 MiB",
            "load_tensors:        CUDA0 model buffer size =   400.00 MiB",
            "llama_kv_cache:      CUDA0 KV buffer size =    64.00 MiB",
            "llama_kv_cache: size =   64.00 MiB (  4096 cells,   4 layers,  4/1 seqs)",
            "sched_reserve:      CUDA0 compute buffer size =    10.00 MiB",
            "sched_reserve:  CUDA_Host compute buffer size =     2.00 MiB",
            "llama_context:  CUDA_Host  output buffer size =     1.00 MiB",
        ]
    )
    assert seen is not None
    mib = 1 << 20
    assert (seen.weights, seen.cache, seen.compute) == (int(500.5 * mib), 64 * mib, 13 * mib)
    assert seen.devices == ("CPU_Mapped", "CUDA0", "CUDA_Host")
    assert read_buffers(["nothing here"]) is None


def test_a_context_that_reserves_once_more_takes_its_buffer_once() -> None:
    lines = [
        "load_tensors:   CPU_Mapped model buffer size =    11.00 MiB",
        "llama_adapter_lora_init_impl: CPU_Mapped LoRA buffer size =     1.00 MiB",
        "llama_context: constructing llama_context",
        "sched_reserve:        CPU compute buffer size =     8.00 MiB",
        "llama_context:        CPU  output buffer size =     2.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =     4.00 MiB",
        "sched_reserve:        CPU compute buffer size =     9.00 MiB",
        "alloc_compute_meta:        CPU compute buffer size =     3.00 MiB",
        "llama_context: constructing llama_context",  # a draft model's
        "llama_context:        CPU  output buffer size =     2.00 MiB",
        "sched_reserve:        CPU compute buffer size =     5.00 MiB",
    ]
    seen = read_buffers(lines)
    assert seen is not None
    assert (seen.weights >> 20, seen.compute >> 20) == (12, 4 + 9 + 3 + 5 + 4)


def test_a_start_on_two_gpus_teaches_nothing_of_what_was_estimated_well() -> None:
    placed = Placement((Share(0, "CUDA0", 17), Share(1, "CUDA1", 16)))
    found = estimate_placed(SHAPE, Q4, Load(8192), placed, pipelined=False)
    assert found.compute > estimate(SHAPE, Q4, Load(8192)).compute * 1.8
    mapped = found.weights + (300 << 20)  # with layers between that are on GPUs
    seen = SeenBuffers(mapped, found.cache, found.compute, ("CUDA0", "CUDA1", "CPU_Mapped"))
    assert learn(seen, found, spread=True) == Correction()
    assert seen.taken(found.weights) == found.buffers


@pytest.mark.parametrize("copy", ["AMX", "CPU_REPACK"])
def test_weights_that_the_processor_has_in_its_own_order_count_once(copy: str) -> None:
    lines = [
        f"load_tensors:          {copy} model buffer size =   249.50 MiB",
        "load_tensors:   CPU_Mapped model buffer size =   247.25 MiB",
        "sched_reserve:        CPU compute buffer size =    25.50 MiB",
    ]
    seen = read_buffers(lines)
    assert seen is not None
    assert (seen.weights, seen.compute) == (int(249.5 * (1 << 20)), int(25.5 * (1 << 20)))
    taught = learn(seen, estimate(SHAPE, 400 << 20, Load(8192)))
    assert taught.weights == 1.0, "a lower bound teaches nothing"
    unmapped = read_buffers([lines[0], lines[1].replace("CPU_Mapped", "       CPU")])
    assert unmapped is not None
    assert unmapped.weights == int(496.75 * (1 << 20))


def test_layers_without_heads_are_recurrent_and_need_no_cache() -> None:
    hybrid = {
        **LLAMA_8B,
        "llama.attention.head_count_kv": (0, 0, 0, 8) * 8,
        "llama.ssm.inner_size": 8192,
        "llama.ssm.state_size": 128,
        "llama.ssm.conv_kernel": 4,
        "llama.ssm.group_count": 8,
    }
    shape = shape_from_metadata(hybrid)
    assert len(shape.recurrent_layers) == 24
    assert estimate(shape, Q4, Load(8192)).cache < estimate(SHAPE, Q4, Load(8192)).cache


@pytest.mark.parametrize(
    "change",
    [
        {"general.architecture": 7},
        {"general.architecture": ""},
        {"llama.block_count": 0},
        {"llama.block_count": 1 << 40},
        {"llama.block_count": "many"},
        {"llama.embedding_length": -1},
        {"llama.attention.head_count": (1.5, 2.5)},
        {"llama.attention.head_count_kv": (8, 8)},
        {"llama.attention.head_count": LongArray(10)},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(change: dict[str, Value]) -> None:
    with pytest.raises(RequestError, match="can't be estimated"):
        shape_from_metadata({**LLAMA_8B, **change})


def test_an_unknown_architecture_is_read_as_a_plain_transformer() -> None:
    unknown = {key.replace("llama.", "brandnew."): value for key, value in LLAMA_8B.items()}
    shape = shape_from_metadata({**unknown, "general.architecture": "brandnew"})
    assert replace(shape, architecture="llama") == SHAPE
