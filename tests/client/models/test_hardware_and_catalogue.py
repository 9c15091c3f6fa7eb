"""What a box has, by its sysfs; what a repository's file names say."""

# ruff: noqa: N802 - the fake has the names of NVML
from __future__ import annotations

import sys
import types
from pathlib import Path

import pynvml
import pytest
from msgspec.structs import replace

from wai_node.models.catalogue import (
    RemoteFile,
    check_repo,
    group_files,
    parse_reference,
)
from wai_node.models.hardware import Gpu, Hardware, describe, detect_hardware
from wai_node.models.space import Space
from wai_protocol.errors import RequestError

SHA = "a" * 64
GIB = 1 << 30


def card(drm: Path, name: str, **files: str) -> None:
    device = drm / name / "device"
    device.mkdir(parents=True)
    for file, text in files.items():
        (device / file).write_text(text)


def test_a_box_without_a_gpu_has_none_and_nothing_is_raised(tmp_path: Path) -> None:
    found = detect_hardware(tmp_path / "absent")
    assert [g for g in found.gpus if g.vendor == "amd"] == []
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes
    assert found.cpu_cores >= 1


def test_what_a_process_takes_and_frees_is_counted_on_the_gpus_that_it_is_on() -> None:
    cards = Gpu("card", "nvidia", 8 * GIB, 3 * GIB, 1), Gpu("card", "nvidia", 8 * GIB, 4 * GIB, 3)
    box = Hardware(cards, 64 * GIB, 10 * GIB, "cpu", 8)
    left = box.with_taken(Space((0, 5 * GIB, 9, GIB), 2 * GIB))
    assert [card.free_bytes for card in left.gpus] == [0, 3 * GIB]
    assert left.ram_available_bytes == 8 * GIB
    freed = box.with_freed(Space((9, 99 * GIB), 99 * GIB))
    assert [card.free_bytes for card in freed.gpus] == [8 * GIB, 4 * GIB]
    assert freed.ram_available_bytes == 64 * GIB
    unified = replace(box, unified_memory=True).with_taken(Space(ram=2 * GIB))
    assert (unified.gpus[0].free_bytes, unified.ram_available_bytes) == (GIB, 8 * GIB)


def test_what_people_are_told_of_a_box_is_not_how_busy_it_is() -> None:
    cards = (Gpu("RTX 4090", "nvidia", 24 << 30, 3 << 30),)
    box = Hardware(cards, 64 << 30, 1 << 30, "Ryzen 9", 16)
    assert describe(box) == {
        "cpu": "Ryzen 9",
        "cpu_cores": 16,
        "ram_bytes": 64 << 30,
        "gpus": [{"name": "RTX 4090", "bytes": 24 << 30}],
    }


def test_amd_cards_are_read_from_sysfs_and_others_passed_over(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card0",
        vendor="0x1002\n",
        mem_info_vram_total="17163091968\n",
        mem_info_vram_used="1000000000\n",
        product_name="Radeon RX 7900\n",
    )
    card(tmp_path, "card1", vendor="0x10de\n")
    card(tmp_path, "card2", vendor="0x1002\n", mem_info_vram_total="broken")
    (tmp_path / "card0-HDMI-A-1").mkdir()
    [found] = [g for g in detect_hardware(tmp_path).gpus if g.vendor == "amd"]
    assert (found.name, found.free_bytes) == ("Radeon RX 7900", 16163091968)


class Nvml(types.ModuleType):
    """NVIDIA's library as nvidia-ml-py shows it, with so many cards; `broken` fails at that call,
    by the error classes of the real module."""

    def __init__(self, cards: list[tuple[str | bytes, int, int]], broken: str = "") -> None:
        super().__init__("pynvml")
        self.cards, self.broken, self.calls = cards, broken, list[str]()
        self.NVMLError = pynvml.NVMLError

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    def nvmlInit(self) -> None:
        self._called("init")

    def nvmlShutdown(self) -> None:
        self._called("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:
        self._called(f"memory {handle}")
        _, total, free = self.cards[handle]
        return types.SimpleNamespace(total=total, free=free, used=total - free)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.cards[handle][0]


def nvidia(monkeypatch: pytest.MonkeyPatch, fake: Nvml, drm: Path) -> list[Gpu]:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return [gpu for gpu in detect_hardware(drm).gpus if gpu.vendor == "nvidia"]


def test_nvidia_cards_are_read_by_nvml_whose_names_may_be_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Nvml(
        [("NVIDIA GeForce RTX 4090", 24 << 30, 20 << 30), (b"Tesla P40", 22 << 30, 1 << 30)]
    )
    assert nvidia(monkeypatch, fake, tmp_path) == [
        Gpu("NVIDIA GeForce RTX 4090", "nvidia", 24 << 30, 20 << 30),
        Gpu("Tesla P40", "nvidia", 22 << 30, 1 << 30, 1),
    ]
    assert fake.calls[-1] == "shutdown"


def test_a_card_that_fell_off_the_bus_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Nvml([("lost", 1 << 30, 1 << 30), ("good", 8 << 30, 8 << 30)], broken="memory 0")
    assert [gpu.name for gpu in nvidia(monkeypatch, fake, tmp_path)] == ["good"]
    assert fake.calls[-1] == "shutdown"


def test_a_driver_that_is_missing_or_broken_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert nvidia(monkeypatch, Nvml([("x", 1, 1)], broken="init"), tmp_path) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert [gpu for gpu in detect_hardware(tmp_path).gpus if gpu.vendor == "nvidia"] == []


def test_apples_gpu_is_a_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    found = detect_hardware(tmp_path)
    [gpu] = found.gpus
    assert found.unified_memory
    assert gpu.total_bytes == int(found.ram_total_bytes * 0.75)
    assert gpu.free_bytes <= found.ram_available_bytes
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert not detect_hardware(tmp_path).unified_memory


def test_memory_that_an_apu_borrows_from_the_ram_is_not_the_gpus(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card1",
        vendor="0x1002\n",
        mem_info_vram_total=f"{512 << 20}\n",
        mem_info_vram_used=f"{400 << 20}\n",
        mem_info_gtt_total=f"{16 << 30}\n",
        mem_info_gtt_used=f"{1 << 30}\n",
    )
    [found] = [gpu for gpu in detect_hardware(tmp_path).gpus if gpu.vendor == "amd"]
    assert (found.total_bytes, found.free_bytes) == (512 << 20, 112 << 20), (
        "GTT is RAM: not counted"
    )


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("BF16/big-BF16-00001-of-00001.gguf", "BF16"),
        ("m-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model-IQ4_XS.gguf", "IQ4_XS"),
        ("model-fp16.gguf", "FP16"),
        ("just-a-model.gguf", "just-a-model"),
    ],
)
def test_a_quantisation_is_read_from_a_file_name(path: str, quant: str) -> None:
    assert [q.name for q in group_files([RemoteFile(path, 10, SHA)])] == [quant]


def test_two_files_of_the_same_quantisation_keep_apart() -> None:
    files = [RemoteFile(path, 10, SHA) for path in ("a-Q4_0.gguf", "b-Q4_0.gguf")]
    assert sorted(q.name for q in group_files(files)) == ["Q4_0", "b-Q4_0"]


@pytest.mark.parametrize(
    "path",
    [
        "../up-Q4_0.gguf",
        "/abs-Q4_0.gguf",
        ".hidden/x-Q4_0.gguf",
        "-flag-Q4_0.gguf",
        "a\\b-Q4_0.gguf",
        "new\nline-Q4_0.gguf",
        "x" * 600 + ".gguf",
        "notes.txt",
    ],
)
def test_a_hostile_file_name_is_left_out(path: str) -> None:
    assert group_files([RemoteFile(path, 10, SHA)]) == ()


def test_a_file_without_a_known_checksum_is_left_out() -> None:
    assert group_files([RemoteFile("a-Q4_0.gguf", 10, ""), RemoteFile("b.gguf", 0, SHA)]) == ()


@pytest.mark.parametrize("name", ["", "a", "a/b/c", "a/..", "../b", "-a/b", "a/b c", "a/b\n", "/"])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(RequestError):
        check_repo(name)


def test_a_reference_names_a_repository_and_maybe_a_quantisation() -> None:
    assert parse_reference("a/b-GGUF") == ("a/b-GGUF", None)
    assert parse_reference("a/b-GGUF:Q4_K_M") == ("a/b-GGUF", "Q4_K_M")
