"""Fleets of unlike nodes, with the speeds of an 8B model on them (public llama.cpp and vLLM
figures, rounded). `home` is what a few friends have; `attic` is many small boxes and one far
away. Those of `lab` tell no slots: two that batch, one that serves one request at a time, and one
that fails three requests of ten at once. Of `shaky` two nodes fail slowly: one a tenth of its
requests, the other all that come within 15 s of each minute."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bench.routing.faults import Faults
from bench.routing.node import NodeSpec
from bench.routing.traces import TraceRequest, mean_tokens

A100_PAIR: Final = NodeSpec("2xA100", 16, 131_072, 16_000, 110, 0.02, 1_000_000, 0.040)
RTX_4090: Final = NodeSpec("4090", 8, 16_384, 7_000, 120, 0.05, 131_072, 0.020)
RTX_3060: Final = NodeSpec("3060", 4, 8_192, 1_800, 50, 0.08, 32_768, 0.025)
M2_MAX: Final = NodeSpec("M2", 2, 32_768, 600, 45, 0.25, 65_536, 0.015)

_TOLD: Final[dict[str, list[NodeSpec]]] = {
    "home": [RTX_4090, RTX_3060, M2_MAX, A100_PAIR],
    "attic": [
        *(replace(RTX_3060, name=f"3060-{i}") for i in range(4)),
        *(replace(M2_MAX, name=f"M2-{i}") for i in range(3)),
        replace(RTX_4090, name="4090-near"),
        replace(RTX_4090, name="4090-far", rtt_s=0.18),
        replace(A100_PAIR, name="A100", slots=8, prefill_tps=9_000, cache_tokens=400_000),
    ],
}
FLEETS: Final[dict[str, list[NodeSpec]]] = {
    **_TOLD,
    "home, untold": [replace(spec, tells=False) for spec in _TOLD["home"]],
    "lab, untold": [
        replace(A100_PAIR, name="vllm-near", slots=64, rtt_s=0.01, tells=False),
        replace(A100_PAIR, name="vllm-far", slots=64, rtt_s=0.05, tells=False),
        replace(RTX_4090, name="one-at-a-time", slots=1, context_tokens=131_072, tells=False),
        replace(
            A100_PAIR, name="flaky", slots=16, rtt_s=0.01, tells=False, faults=Faults(at_once=0.3)
        ),
    ],
    "shaky": [
        replace(RTX_4090, name="4090-stalls", faults=Faults(late=0.1)),
        replace(RTX_4090, name="4090-hangs", faults=Faults(every_s=60.0, down_s=15.0)),
        replace(RTX_4090, name="4090-well"),
        RTX_3060,
        A100_PAIR,
    ],
}


def capacity(specs: list[NodeSpec], requests: list[TraceRequest]) -> float:
    """The most requests per second that the fleet could serve for long with nothing cached.

    What needs more than some context can only be served by the nodes that have more: each such part
    of the trace bounds the whole.
    """
    bounds: list[float] = []
    for context in {0, *(spec.context_tokens for spec in specs)}:
        part = [r for r in requests if r.prompt_tokens + r.output_tokens > context]
        able = [spec for spec in specs if spec.context_tokens > context]
        if part and able:
            served = sum(spec.capacity(*mean_tokens(part)) for spec in able)
            bounds.append(served * len(requests) / len(part))
    return min(bounds)
