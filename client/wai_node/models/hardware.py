"""What the box has: GPUs, RAM, CPU. Asked anew each time, since free memory changes.

NVIDIA by its management library, AMD by the kernel's sysfs, Apple by what unified memory implies,
the rest by psutil. In a container the box is what its control group allows (`cgroup`). It never
raises: a box without a GPU, or with a broken driver, has none.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil

from .cgroup import ROOT, cpu_limit, memory_limits

log = logging.getLogger("wai.node.models")

DRM_FOLDER: Final = Path("/sys/class/drm")
CPU_INFO: Final = Path("/proc/cpuinfo")
_MAX_CPU_CHARS: Final = 80  # names have some 40; a line for people, whatever the kernel prints
APPLE_GPU_SHARE: Final = 0.75  # macOS's default recommendedMaxWorkingSetSize of unified memory
_AMD_VENDOR: Final = "0x1002"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `free_bytes` is what is free now; `vendor` is nvidia, amd or apple."""

    name: str
    vendor: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """A box at one moment. With `unified_memory` the GPU's memory is part of the RAM."""

    gpus: tuple[Gpu, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    cpu: str
    cpu_cores: int
    unified_memory: bool = False

    def with_freed(self, size_bytes: int) -> Hardware:
        """This box once a process that takes `size_bytes` has ended: on the GPUs, as far as they
        can hold it, else in RAM."""
        gpus, left = [], size_bytes
        for card in self.gpus:
            share = min(left, card.total_bytes - card.free_bytes)
            gpus.append(replace(card, free_bytes=card.free_bytes + share))
            left -= share
        freed = size_bytes if self.unified_memory else left
        ram = min(self.ram_total_bytes, self.ram_available_bytes + freed)
        return replace(self, gpus=tuple(gpus), ram_available_bytes=ram)

    def with_taken(self, size_bytes: int) -> Hardware:
        """This box once a process has come that takes `size_bytes`: of the GPUs first."""
        gpus, left = [], size_bytes
        for card in self.gpus:
            share = min(left, card.free_bytes)
            gpus.append(replace(card, free_bytes=card.free_bytes - share))
            left -= share
        taken = size_bytes if self.unified_memory else left
        ram = max(0, self.ram_available_bytes - taken)
        return replace(self, gpus=tuple(gpus), ram_available_bytes=ram)


def detect_hardware(drm: Path = DRM_FOLDER, root: Path = ROOT) -> Hardware:
    """Look at this machine. Takes some milliseconds with a driver: call it in a thread.

    `root` is where the control groups are looked up.
    """
    ram_total, ram_available = _memory(root)
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if apple:
        share = int(ram_total * APPLE_GPU_SHARE)
        card = Gpu("Apple GPU", "apple", share, min(share, ram_available))
        gpus: tuple[Gpu, ...] = (card,)
    else:
        gpus = (*_nvidia(), *_amd(drm))
    return Hardware(
        gpus=gpus,
        ram_total_bytes=ram_total,
        ram_available_bytes=ram_available,
        cpu=_cpu_name(),
        cpu_cores=usable_cores(root),
        unified_memory=apple,
    )


def usable_cores(root: Path = ROOT) -> int:
    """Physical cores that this process may keep busy: those it is not pinned away from, and no more
    than its control group's time allows. At least 1."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if sys.platform == "linux":
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = cpu_limit(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def describe(hardware: Hardware) -> dict[str, Any]:
    """A box in plain values, for the node's STATUS: what it is, not how busy it is."""
    return {
        "cpu": hardware.cpu,
        "cpu_cores": hardware.cpu_cores,
        "ram_bytes": hardware.ram_total_bytes,
        "gpus": [{"name": gpu.name, "bytes": gpu.total_bytes} for gpu in hardware.gpus],
    }


def _memory(root: Path) -> tuple[int, int]:
    """The RAM that this process may have at most, and what of it is free now."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for group in memory_limits(root):
        total, available = min(total, group.limit_bytes), min(available, group.free_bytes)
    return total, available


def _cpu_name(info: Path = CPU_INFO) -> str:
    """What the processor is called; on Linux `platform` knows no more than its architecture."""
    try:
        for line in info.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()[:_MAX_CPU_CHARS]
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


def _nvidia() -> list[Gpu]:
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    try:
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                found += _nvidia_card(pynvml, index)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        log.debug("no NVIDIA GPU: %s", error)
    return found


def _nvidia_card(nvml: Any, index: int) -> list[Gpu]:
    """One card; none where it does not answer (fallen off the bus, say): the others may."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError as error:
        log.debug("the NVIDIA GPU %d does not answer: %s", index, error)
        return []
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return [Gpu(text, "nvidia", int(memory.total), int(memory.free))]


def _amd(drm: Path) -> list[Gpu]:
    """AMD cards as `amdgpu` shows them; amdsmi would print, and raise KeyError, without one."""
    found = []
    try:
        cards = sorted(drm.glob("card[0-9]*/device"))
    except OSError:
        return []
    for device in cards:
        try:
            if (device / "vendor").read_text().strip() != _AMD_VENDOR:
                continue
            total = int((device / "mem_info_vram_total").read_text())
            used = int((device / "mem_info_vram_used").read_text())
        except (OSError, ValueError) as error:
            log.debug("%s is no AMD GPU that can be read: %s", device, error)
            continue
        name_file = device / "product_name"
        try:
            name = name_file.read_text().strip() or "AMD GPU"
        except OSError:
            name = "AMD GPU"
        found.append(Gpu(name, "amd", total, max(0, total - used)))
    return found
