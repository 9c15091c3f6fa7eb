"""What goes to which device, and what it takes there, against what a real llama-server reports."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from tests.client.models.test_fit_against_llama_server import TOLERANCE, buffers_of, header_of
from tests.harness.real import require_real
from tests.harness.rpc_devices import rpc_devices, rpc_server
from tests.harness.tiny_families import FAMILIES, Shape, write_family
from wai_node.models.buffer_log import SeenBuffers
from wai_node.models.fit import costs_of, estimate_placed
from wai_node.models.layout import layout_of
from wai_node.models.load import Load
from wai_node.models.placement import Placement, Share, space_of
from wai_node.models.shape import shape_from_metadata

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SHAPE: Final = Shape(
    embedding=512, blocks=8, heads=8, head_dim=64, feed_forward=2048, vocabulary=8192, experts=8
)
LOADS: Final = (Load(4096, 2), Load(16384))
FIRST, SECOND = "RPC0", "RPC1"
WHOLE: Final = Placement((Share(0, FIRST, 9),))
HALF: Final = Placement((Share(0, FIRST, 4),))
TWO: Final = Placement((Share(0, FIRST, 5), Share(1, SECOND, 4)))
LAST: Final = Placement((Share(0, FIRST, 7), Share(1, SECOND, 2)))
TWO_HALF: Final = Placement((Share(0, FIRST, 2), Share(1, SECOND, 3)))
EXPERTS: Final = ("mixtral", "qwen3moe", "deepseek2")


@pytest.fixture(autouse=True)
def real() -> None:
    require_real("llama-server")
    if rpc_server() is None:
        pytest.skip("the package of llama-server has no ggml-rpc-server")


def on(seen: SeenBuffers, name: str) -> int:
    """What the log says is on a device; its name there is RPC0[ADDRESS], CPU or CPU_Mapped."""
    pairs = zip(seen.devices, seen.by_device, strict=True)
    return sum(size for device, size in pairs if name in device)


def compare(path: Path, load: Load, placed: Placement) -> None:
    """Have llama-server place a model so, and compare what it says of each device."""
    header = header_of(path)
    shape, weights = shape_from_metadata(header.metadata), header.tensor_bytes or 0
    layout = layout_of(header.tensors, shape.blocks)
    assert layout is not None
    costs = costs_of(shape, weights, layout, load, factor=1.0)
    with rpc_devices(2) as devices:  # new ones: they end when llama-server is killed
        seen = buffers_of(path, load, "--rpc", devices, *placed.to_argv())
    found = space_of(placed, costs, pipelined=seen.pipelined)
    most = space_of(placed, costs_of(shape, weights, layout, load), pipelined=seen.pipelined)
    for share in placed.shares:
        real = on(seen, devices.split(",")[share.gpu])
        assert found.on(share.gpu) == pytest.approx(real, rel=TOLERANCE), (share, load)
        assert most.on(share.gpu) >= real, "the upper end of the estimate"
    in_ram = on(seen, "CPU")
    if placed.gpu_layers <= shape.blocks or placed.cpu_moe:
        said = found.ram - costs.process  # which no log names
        # Of a mapped file it logs all that is between two tensors in RAM, what is elsewhere too.
        between = layout.output + sum(layout.dense[: placed.cpu_moe])
        assert in_ram * (1 - TOLERANCE) - between <= said <= in_ram * (1 + TOLERANCE), load
    whole = estimate_placed(shape, weights, load, placed, layout=layout, pipelined=seen.pipelined)
    assert whole.buffers == pytest.approx(seen.taken(whole.weights), rel=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_device_takes_what_is_said_of_it(family: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / f"{family}.gguf", family, SHAPE)
    for placed in (WHOLE, TWO, LAST, HALF, TWO_HALF):
        for load in LOADS:
            compare(path, load, placed)


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_that_stay_in_ram_leave_the_device_with_attention_alone(
    family: str, tmp_path: Path
) -> None:
    path = write_family(tmp_path / f"{family}.gguf", family, SHAPE)
    for placed in (WHOLE, TWO, HALF):
        for cpu_moe in (2, 7, 8):
            for load in LOADS:
                compare(path, load, replace(placed, cpu_moe=cpu_moe))
