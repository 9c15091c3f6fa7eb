"""What goes to which device, and what it takes there, against what a real llama-server reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.client.models.test_fit_against_llama_server import TOLERANCE, buffers_of, header_of
from tests.harness.real import require_real
from tests.harness.rpc_devices import rpc_devices, rpc_server
from tests.harness.tiny_families import Shape, write_family
from wai_node.models.buffer_log import SeenBuffers
from wai_node.models.estimate import Load
from wai_node.models.fit import costs_of
from wai_node.models.layout import layout_of
from wai_node.models.placement import Costs, Placement, Share, space_of
from wai_node.models.shape import shape_from_metadata

pytestmark = pytest.mark.timeout(300)

SHAPE: Final = Shape(
    embedding=512, blocks=8, heads=8, head_dim=64, feed_forward=2048, vocabulary=8192, experts=8
)
LOADS: Final = (Load(4096, 2), Load(16384))
MORE_IN_ALL: Final = 0.11  # deepseek2 with b10434; all others are within a tenth
MORE_IN_PART: Final = 0.45
FIRST, SECOND = "RPC0", "RPC1"
WHOLE: Final = Placement((Share(0, FIRST, 9),))
HALF: Final = Placement((Share(0, FIRST, 4),))
TWO: Final = Placement((Share(0, FIRST, 5), Share(1, SECOND, 4)))
TWO_HALF: Final = Placement((Share(0, FIRST, 2), Share(1, SECOND, 3)))
EXPERTS: Final = ("mixtral", "qwen3moe", "deepseek2")


@pytest.fixture(autouse=True)
def real() -> None:
    require_real("llama-server")
    if rpc_server() is None:
        pytest.skip("the package of llama-server has no ggml-rpc-server")


def on(seen: SeenBuffers, name: str) -> int:
    """What the log says is on a device; its name there is RPC0[ADDRESS], or CPU_Mapped."""
    pairs = zip(seen.devices, seen.by_device, strict=True)
    return sum(size for device, size in pairs if name in device)


def compare(
    path: Path, load: Load, placed: Placement, less: float = TOLERANCE, more: float = TOLERANCE
) -> tuple[Costs, SeenBuffers]:
    """Have llama-server place a model so, and compare what it says of each device: the estimate is
    at most so much less, or more."""
    header = header_of(path)
    shape, weights = shape_from_metadata(header.metadata), header.tensor_bytes or 0
    layout = layout_of(header.tensors, shape.blocks)
    assert layout is not None
    costs = costs_of(shape, weights, layout, load, factor=1.0)
    with rpc_devices(2) as devices:  # new ones: they end when llama-server is killed
        seen = buffers_of(path, load, "--rpc", devices, *placed.to_argv())
    log = path.with_suffix(".log").read_text(errors="replace")
    found = space_of(placed, costs, pipelined="pipeline parallelism enabled" in log)
    most = space_of(placed, costs_of(shape, weights, layout, load))
    for share in placed.shares:
        real = on(seen, devices.split(",")[share.gpu])
        said = found.on(share.gpu)
        assert real * (1 - less) <= said <= real * (1 + more), (share, load)
        assert most.on(share.gpu) >= real, "the upper end of the estimate"
    return costs, seen


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "phi3", "gemma2", "mixtral", "qwen3moe", "deepseek2"]
)
@pytest.mark.parametrize("placed", [WHOLE, TWO])
def test_each_device_takes_what_is_said_of_it(
    family: str, placed: Placement, tmp_path: Path
) -> None:
    path = write_family(tmp_path / f"{family}.gguf", family, SHAPE)
    for load in LOADS:
        compare(path, load, placed, more=MORE_IN_ALL)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3moe", "deepseek2", "mamba"])
@pytest.mark.parametrize("placed", [HALF, TWO_HALF])
def test_a_device_with_some_of_the_layers_takes_no_more_than_is_said(
    family: str, placed: Placement, tmp_path: Path
) -> None:
    path = write_family(tmp_path / f"{family}.gguf", family, SHAPE)
    # its scratch memory is that of the widest stage, which may not be there
    compare(path, LOADS[0], placed, more=MORE_IN_PART)


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("cpu_moe", [2, 7])
def test_experts_that_stay_in_ram_leave_the_device(
    family: str, cpu_moe: int, tmp_path: Path
) -> None:
    path = write_family(tmp_path / f"{family}.gguf", family, SHAPE)
    load = LOADS[0]
    whole, _ = compare(path, load, WHOLE, more=MORE_IN_ALL)
    for placed in (WHOLE, TWO, HALF):
        placed = replace(placed, cpu_moe=cpu_moe)
        costs, seen = compare(path, load, placed, more=MORE_IN_PART)
        if placed.gpu_layers == 9:  # the mapped part of the file has other layers between these
            in_ram = costs.embeddings + sum(whole.experts[:cpu_moe])
            assert on(seen, "CPU_Mapped") >= in_ram * 0.99
