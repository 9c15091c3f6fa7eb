"""Which builds of llama.cpp a machine can use, best first: a pure rule, and what it is told.

The drivers are asked, never assumed: NVIDIA's management library for the CUDA version, the system
for ROCm's library and the Vulkan loader. Intel's GPUs are not looked for; `--backend vulkan` uses
one.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any, Final

import msgspec

from wai_node.models.hardware import Hardware, ask_nvidia

_VULKAN_LOADER: Final = "libvulkan.so.1"
_ROCM_LIBRARIES: Final = ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6")


class Machine(msgspec.Struct, frozen=True):
    """What decides on a build. `cuda`: the newest major version that NVIDIA's driver runs, 0
    without one. `vendors`: of its GPUs."""

    system: str
    machine: str
    vendors: frozenset[str] = frozenset()
    cuda: int = 0
    rocm: bool = False
    vulkan: bool = False


def backends_for(machine: Machine) -> tuple[str, ...]:
    """Return the backends to take, best first. The last one always runs, if only on the CPU.

    Vulkan's builds hold the CPU's code too, so they stand in where no CPU build is listed.
    """
    if machine.system == "darwin":
        return ("metal", "cpu") if machine.machine == "arm64" else ("cpu",)
    found: list[str] = []
    if "nvidia" in machine.vendors:
        found += [name for name, least in (("cuda13", 13), ("cuda12", 12)) if machine.cuda >= least]
    if "amd" in machine.vendors and machine.rocm:
        found.append("rocm")
    if machine.vendors and machine.vulkan:
        found.append("vulkan")
    return (*found, "cpu") if "vulkan" in found else (*found, "cpu", "vulkan")


def gpu_advice(machine: Machine) -> str:
    """Return what this machine lacks to use its GPU with a build that there is, or ""."""
    if not machine.vendors or machine.system != "linux" or machine.vulkan:
        return ""
    if "nvidia" in machine.vendors and machine.cuda >= 13:
        return ""
    return (
        "install the Vulkan loader and the driver's Vulkan part (Debian, Ubuntu: `apt-get install"
        " libvulkan1 mesa-vulkan-drivers`; NVIDIA's driver brings its own part)"
    )


def detect_machine(hardware: Hardware) -> Machine:
    """Ask the drivers. Blocks for some milliseconds; nothing is raised."""
    vendors = frozenset(gpu.vendor for gpu in hardware.gpus)
    return Machine(
        system=platform.system().lower(),
        machine=platform.machine().lower(),
        vendors=vendors,
        cuda=ask_nvidia(_cuda, 0) if "nvidia" in vendors else 0,
        rocm="amd" in vendors and any(map(_loads, _ROCM_LIBRARIES)),
        vulkan=bool(vendors) and _loads(_VULKAN_LOADER),
    )


def _cuda(nvml: Any) -> int:
    return int(nvml.nvmlSystemGetCudaDriverVersion_v2()) // 1000


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
