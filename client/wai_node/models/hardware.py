"""Detect the machine's GPUs, RAM and CPU. Detected at each call, since free memory changes.

NVIDIA GPUs by NVIDIA's management library, AMD's by the kernel's sysfs, Apple's by the unified
memory, RAM and CPU by psutil, within what the control group allows (`cgroup`). Nothing is raised:
if a driver is missing or broken, the machine has no such GPU.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import psutil
from msgspec.structs import replace

from .amd import read_amd
from .cgroup import ROOT, cpu_limit, memory_limits
from .space import Space

log = logging.getLogger("wai.node.models")

_T = TypeVar("_T")

DRM_FOLDER: Final = Path("/sys/class/drm")
CPU_INFO: Final = Path("/proc/cpuinfo")
_MAX_CPU_CHARS: Final = 80  # names have some 40 characters; this limits what the kernel prints
APPLE_GPU_SHARE: Final = 0.75  # macOS's default recommendedMaxWorkingSetSize of unified memory


class Gpu(msgspec.Struct, frozen=True):
    """One GPU, with its memory in bytes; `vendor` is nvidia, amd or apple. `number`: its place
    among this machine's GPUs. `device`: the engine's name for it, as CUDA0; "": not known."""

    name: str
    vendor: str
    total_bytes: int
    free_bytes: int
    number: int = 0
    device: str = ""


class Hardware(msgspec.Struct, frozen=True):
    """A machine at one moment. With `unified_memory` the GPU's memory is part of the RAM."""

    gpus: tuple[Gpu, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    cpu: str
    cpu_cores: int
    unified_memory: bool = False

    def with_freed(self, space: Space) -> Hardware:
        """Return this machine after processes that took `space` have ended."""
        return self._changed(space, 1)

    def with_taken(self, space: Space) -> Hardware:
        """Return this machine after processes have taken `space`."""
        return self._changed(space, -1)

    def _changed(self, space: Space, sign: int) -> Hardware:
        gpus = []
        for card in self.gpus:
            size = space.ram if self.unified_memory else space.on(card.number)
            free = min(card.total_bytes, max(0, card.free_bytes + sign * size))
            gpus.append(replace(card, free_bytes=free))
        ram = self.ram_available_bytes + sign * space.ram
        ram = min(self.ram_total_bytes, max(0, ram))
        return replace(self, gpus=tuple(gpus), ram_available_bytes=ram)


def detect_hardware(drm: Path = DRM_FOLDER, root: Path = ROOT) -> Hardware:
    """Detect this machine's hardware. Blocks for some milliseconds: call it in a thread.

    `drm` and `root` are the folders of graphics cards and of control groups; tests replace them.
    """
    ram_total, ram_available = memory_now(root)
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if apple:
        share = int(ram_total * APPLE_GPU_SHARE)
        card = Gpu("Apple GPU", "apple", share, min(share, ram_available))
        gpus: tuple[Gpu, ...] = (card,)
    else:
        none: tuple[Gpu, ...] = ()
        gpus = ask_nvidia(_nvidia_cards, none)
        first = 1 + max((card.number for card in gpus), default=-1)
        gpus += tuple(replace(card, number=n) for n, card in enumerate(_amd(drm), first))
    return Hardware(
        gpus=gpus,
        ram_total_bytes=ram_total,
        ram_available_bytes=ram_available,
        cpu=_cpu_name(),
        cpu_cores=usable_cores(root),
        unified_memory=apple,
    )


def usable_cores(root: Path = ROOT) -> int:
    """Return how many physical cores this process may use, at least 1.

    CPU affinity and the control group's CPU time are respected.
    """
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if sys.platform == "linux":
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = cpu_limit(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def describe(hardware: Hardware) -> dict[str, Any]:
    """Return the machine as plain values for the node's STATUS, without how busy it is."""
    return {
        "cpu": hardware.cpu,
        "cpu_cores": hardware.cpu_cores,
        "ram_bytes": hardware.ram_total_bytes,
        "gpus": [{"name": gpu.name, "bytes": gpu.total_bytes} for gpu in hardware.gpus],
    }


def memory_now(root: Path = ROOT) -> tuple[int, int]:
    """Return the most RAM that this process may use, and how much of it is free now."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for group in memory_limits(root):
        total, available = min(total, group.limit_bytes), min(available, group.free_bytes)
    return total, available


def _cpu_name(info: Path = CPU_INFO) -> str:
    """Return the processor's name; on Linux `platform` has only its architecture."""
    try:
        for line in info.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()[:_MAX_CPU_CHARS]
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def ask_nvidia(question: Callable[[Any], _T], otherwise: _T) -> _T:
    """Return what `question` learns of NVIDIA's library; `otherwise` where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return otherwise
    try:
        pynvml.nvmlInit()
        try:
            return question(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        log.debug("NVIDIA's driver does not answer: %s", error)
        return otherwise


def _nvidia_cards(nvml: Any) -> tuple[Gpu, ...]:
    count = nvml.nvmlDeviceGetCount()
    return tuple(card for index in range(count) for card in _nvidia_card(nvml, index))


def _nvidia_card(nvml: Any, index: int) -> list[Gpu]:
    """Return one card; an empty list if it does not answer (for example, fell off the bus)."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:
        log.debug("the NVIDIA GPU %d does not answer: %s", index, error)
        return []
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return [Gpu(text, "nvidia", int(memory.total), int(memory.free), index)]


def _amd(drm: Path) -> list[Gpu]:
    """Return AMD's cards whose memory is told."""
    return [
        Gpu(card.name, "amd", card.total_bytes, max(0, card.total_bytes - card.used_bytes))
        for card in read_amd(drm)
        if card.total_bytes is not None and card.used_bytes is not None
    ]
