"""STATUS: what a node may say of itself, in number, size and range."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgpack
import pytest
from msgspec.structs import replace

from wai_protocol.errors import RemoteProtocolError
from wai_protocol.limits import MAX_DETAIL_BYTES, MAX_FRAME_BYTES
from wai_protocol.status import (
    CONTINUE_FINAL_MESSAGE,
    MAX_CAPABILITIES,
    MAX_COUNT,
    MAX_MODELS,
    MAX_NAME_CHARS,
    PER_TOKEN_TIMINGS,
    ModelStatus,
    NodeStatus,
)
from wai_protocol.weight import MAX_DEPTH, fits

LONG = "x" * (MAX_NAME_CHARS + 1)


@pytest.mark.parametrize(
    "model",
    [
        {"id": ""},
        {"id": LONG},
        {"id": "m", "upstream": LONG},
        {"id": "m", "apis": ["openai", LONG]},
        {"id": "m", "apis": [7]},
        {"id": "m", "capabilities": ["c" * 33]},
        {"id": "m", "capabilities": "per_token_timings"},
        {"id": "m", "capabilities": None},
        {"id": "m", "slots_total": MAX_COUNT + 1},
        {"id": "m", "context_tokens": -1},
        {"id": "m", "queued": True},
        {"id": "m", "prefill_tps": math.inf},
        {"id": "m", "decode_tps": math.nan},
        {"id": "m", "decode_tps": -1.0},
        {"id": "m", "load_ms": -1},
        {"id": "m", "load_ms": 1.5},
    ],
)
def test_a_model_out_of_bounds_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        NodeStatus.from_wire({"models": [model]})


def test_more_models_than_there_may_be_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        NodeStatus.from_wire({"models": [{"id": "m"}] * (MAX_MODELS + 1)})


@pytest.mark.parametrize(
    "detail",
    [
        {"gpu": "x" * MAX_DETAIL_BYTES},
        {"gpus": [0] * MAX_DETAIL_BYTES},
        {"load": math.inf},
        {"load": [math.nan]},
        {str(n): n for n in range(2000)},
    ],
)
def test_a_detail_out_of_bounds_costs_itself_and_not_the_session(detail: dict[str, Any]) -> None:
    status = NodeStatus.from_wire({"models": [{"id": "m"}], "detail": detail})
    assert status.detail == {}
    assert [model.id for model in status.models] == ["m"]


def test_a_real_detail_is_kept() -> None:
    gpus = [{"name": "NVIDIA H200", "memory_bytes": 150_754_820_096} for _ in range(8)]
    detail = {"os": "Linux", "machine": "x86_64", "gpus": gpus, "load": 0.5, "swap": None}
    assert NodeStatus.from_wire({"detail": detail}).detail == detail


def test_what_is_nested_too_deep_does_not_fit() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH):
        value = [value]
    assert fits(value, 1 << 20)
    assert not fits([value], 1 << 20)


def test_what_is_kept_of_the_largest_status_is_about_as_much_as_its_frame() -> None:
    model = {"id": "x" * 235, "upstream": "y" * 200, "apis": ["z" * 31] * 1, "slots_total": 1 << 39}
    raw = msgpack.packb({"models": [model] * MAX_MODELS, "detail": {"a": ["b" * 999] * 50}})
    assert len(raw) > MAX_FRAME_BYTES
    tracemalloc.start()
    try:
        kept = NodeStatus.from_wire(msgpack.unpackb(raw))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept.models) == MAX_MODELS
    assert held < 1 << 20


@pytest.mark.parametrize(
    ("model", "capabilities"),
    [
        ({"upstream": "llama-server@a"}, (PER_TOKEN_TIMINGS, CONTINUE_FINAL_MESSAGE)),
        ({"upstream": "vllm@a"}, (CONTINUE_FINAL_MESSAGE,)),
        ({"upstream": "ollama@a"}, ()),
        ({"upstream": "llama-server@a", "capabilities": []}, ()),
        ({"upstream": "ollama@a", "capabilities": ["a", "b"]}, ("a", "b")),
        ({"upstream": "new@a", "capabilities": ["c"] * 20}, ("c",) * MAX_CAPABILITIES),
    ],
)
def test_a_node_that_tells_no_capabilities_has_those_of_its_kind(
    model: dict[str, Any], capabilities: tuple[str, ...]
) -> None:
    [read] = NodeStatus.from_wire({"models": [{"id": "m", **model}]}).models
    assert read.capabilities == capabilities


def test_capabilities_come_over_the_wire_as_they_were_told() -> None:
    told = NodeStatus(
        (ModelStatus("m", "llama-server@a"), ModelStatus("n", "u", capabilities=("x",)))
    )
    assert NodeStatus.from_wire(told.to_wire()) == told


def test_a_load_takes_time_only_where_the_model_is_not_in_memory() -> None:
    asleep = ModelStatus("m", "u", loaded=False, load_ms=8000)
    [told] = NodeStatus.from_wire(NodeStatus((asleep,)).to_wire()).models
    assert told == asleep
    assert told.load_s == 8.0
    assert replace(asleep, loaded=True).load_s == 0.0
    assert replace(asleep, loaded=None).load_s == 0.0, "a node that does not tell is not slower"
    guessed = replace(asleep, load_ms=None, size_bytes=10 << 30)
    assert 10 < guessed.load_s < 60
