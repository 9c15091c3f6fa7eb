"""Where a model's layers go: on the fewest GPUs, with experts in RAM, in part, or in RAM alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.client.models.test_fit import GIB
from wai_node.engines.matching import match_devices
from wai_node.engines.probe import Device
from wai_node.models.gguf_header import TensorInfo
from wai_node.models.hardware import Gpu, Hardware
from wai_node.models.layout import layout_of
from wai_node.models.placement import (
    Costs,
    FitVerdict,
    Placement,
    Share,
    Wanted,
    place,
    space_of,
)
from wai_node.models.scratch import Scratch, Stages
from wai_node.models.space import Space

# 8 layers and the output; each takes 1 without its experts, which take 9
MOE = Costs(
    dense=(1,) * 9,
    experts=(9,) * 8 + (0,),
    embeddings=1,
    scratch=Scratch((Stages(2, 2, 2),) * 8),
    beside=0,
    process=0,
    whole=84,
)
UNEVEN = replace(
    MOE,
    scratch=Scratch((Stages(1, 0, 4, mask=1), Stages(2, 3, 0, mask=2, windowed=True)) * 4, 1, 2),
    beside=3,
)
DENSE = replace(MOE, dense=(10,) * 9, experts=(0,) * 9, whole=93)


def box(*free: int, ram: int = 200) -> tuple[Hardware, Space]:
    cards = tuple(Gpu("g", "nvidia", 1000, size, n, f"CUDA{n}") for n, size in enumerate(free))
    return Hardware(cards, 1000, ram, "cpu", 8), Space(free, ram)


def shares(placement: Placement) -> list[tuple[int, int]]:
    return [(share.gpu, share.layers) for share in placement.shares]


def test_all_layers_go_to_the_one_gpu_that_holds_them_with_the_most_room() -> None:
    verdict, found = place(MOE, *box(90, 100, 83))
    assert (verdict, shares(found), found.cpu_moe) == (FitVerdict.GPU, [(1, 9)], 0)
    assert found.to_argv() == ["--gpu-layers", "9", "--device", "CUDA1"]


def test_a_model_that_no_gpu_holds_goes_to_the_fewest_that_do_alike_filled() -> None:
    verdict, found = place(MOE, *box(60, 20, 60))
    assert verdict is FitVerdict.GPU
    assert [gpu for gpu, _ in shares(found)] == [0, 2]
    assert found.gpu_layers == 9
    assert abs(found.shares[0].layers - found.shares[1].layers) <= 1
    split = ",".join(str(share.layers) for share in found.shares)
    assert found.to_argv()[2:] == [
        *("--device", "CUDA0,CUDA2", "--split-mode", "layer", "--tensor-split", split)
    ]


def test_the_experts_of_as_few_layers_as_needed_stay_in_ram_before_any_layer_does() -> None:
    verdict, found = place(MOE, *box(60))
    assert (verdict, found.gpu_layers, found.cpu_moe) == (FitVerdict.PARTIAL, 9, 3)
    assert found.to_argv()[2:4] == ["--n-cpu-moe", "3"]
    verdict, found = place(MOE, *box(8))
    assert (verdict, found.gpu_layers, found.cpu_moe) == (FitVerdict.PARTIAL, 6, 8)
    verdict, found = place(DENSE, *box(60))
    assert (verdict, found.gpu_layers, found.cpu_moe) == (FitVerdict.PARTIAL, 5, 0)


def test_without_the_ram_for_the_rest_it_fits_nowhere() -> None:
    assert place(MOE, *box(60, ram=30))[0] is FitVerdict.PARTIAL
    assert place(MOE, *box(60, ram=29))[0] is FitVerdict.NO
    assert place(MOE, *box(ram=84)) == (FitVerdict.CPU, Placement())


def test_what_is_wanted_is_so_or_not_at_all() -> None:
    hardware = box(100, 60)
    assert shares(place(MOE, *hardware, Wanted(gpus=(1,)))[1]) == [(1, 9)]
    assert place(MOE, *hardware, Wanted(gpus=(1,)))[1].cpu_moe == 3
    assert place(MOE, *hardware, Wanted(cpu_moe=5))[1].cpu_moe == 5
    assert place(MOE, *box(40), Wanted(gpu_layers=9, cpu_moe=0))[0] is FitVerdict.NO
    assert place(MOE, *hardware, Wanted(gpu_layers=0)) == (FitVerdict.CPU, Placement())
    verdict, found = place(MOE, *hardware, Wanted(gpu_layers=4))
    assert (verdict, found.gpu_layers) == (FitVerdict.PARTIAL, 4)


def test_a_gpu_that_is_full_is_not_used() -> None:
    verdict, found = place(MOE, *box(1, 60))
    assert (verdict, [gpu for gpu, _ in shares(found)]) == (FitVerdict.PARTIAL, [1])


@given(
    st.lists(st.integers(0, 120), max_size=4),
    st.integers(0, 200),
    st.sampled_from([MOE, DENSE, UNEVEN]),
)
def test_what_is_placed_fits_by_the_same_figures(free: list[int], ram: int, costs: Costs) -> None:
    hardware, room = box(*free, ram=ram)
    verdict, found = place(costs, hardware, room)
    if verdict is FitVerdict.NO:
        assert costs.whole > ram
        return
    assert room.holds(space_of(found, costs))
    assert (verdict is FitVerdict.GPU) == (found.gpu_layers == 9 and not found.cpu_moe)


def test_a_layout_is_read_from_the_tensors() -> None:
    def tensor(name: str, *dimensions: int) -> TensorInfo:
        return TensorInfo(name, dimensions, 0)

    tensors = [
        tensor("token_embd.weight", 10, 10),
        tensor("output_norm.weight", 10),
        tensor("blk.0.attn_q.weight", 10, 2),
        tensor("blk.1.ffn_up_exps.weight", 10, 3, 4),
        tensor("blk.1.ffn_gate_inp.weight", 10),
    ]
    found = layout_of(tensors, 2)
    assert found is not None
    assert (found.dense, found.experts) == ((80, 40), (0, 480))
    assert (found.embeddings, found.output) == (400, 440), "the embeddings are the output too"
    own = layout_of([*tensors, tensor("output.weight", 5, 5)], 2)
    assert own is not None
    assert own.output == 140
    assert layout_of([TensorInfo("x", (1,), 99)], 2) is None


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (["CUDA0 RTX 4090 24 20", "CUDA1 RTX 3090 24 3"], {1: "CUDA0", 0: "CUDA1"}),
        (["CUDA0 RTX 4090 24 20"], {1: "CUDA0"}),
        (["Vulkan0 NVIDIA RTX 4090 24 20", "CUDA0 RTX 4090 24 20"], {1: "Vulkan0", 0: "CUDA0"}),
        (["Vulkan0 Intel UHD 16 16"], {}),
        ([], {}),
    ],
)
def test_an_engines_devices_are_found_among_the_gpus(
    devices: list[str], names: dict[int, str]
) -> None:
    cards = [
        Gpu("RTX 3090", "nvidia", 24 * GIB, 3 * GIB, 0),
        Gpu("RTX 4090", "nvidia", 24 * GIB, 20 * GIB, 1),
    ]
    told = []
    for line in devices:
        name, *about, total, free = line.split()
        told.append(Device(name, " ".join(about), int(total) * GIB, int(free) * GIB))
    assert match_devices(cards, told) == names


def test_twins_are_told_apart_by_what_is_free() -> None:
    twins = [Gpu("A100", "nvidia", 80 * GIB, size * GIB, n) for n, size in enumerate((10, 70))]
    seen = [Device("CUDA0", "A100", 80 * GIB, 69 * GIB)]
    assert match_devices(twins, seen) == {1: "CUDA0"}


def test_spaces_add_up_by_gpu() -> None:
    both = Space((1, 2), 3) + Space((0, 0, 5))
    assert both == Space((1, 2, 5), 3)
    assert both - Space((1, 2, 5), 3) == Space()
    assert not Space((0, 4)).holds(Space((1,)))
    assert Space((-1, 4)).holds(Space((0, 4)))
    assert str(Space((GIB, GIB))) == "2.0 GiB on the GPUs"


def test_a_placement_of_one_device_without_a_name_leaves_the_choice_to_the_engine() -> None:
    assert Placement((Share(0, "", 5),)).to_argv() == ["--gpu-layers", "5"]
