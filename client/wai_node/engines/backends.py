"""What builds of llama.cpp compute with. No imports: the command line's help names them too."""

from __future__ import annotations

from typing import Final

BACKENDS: Final = ("cuda13", "cuda12", "rocm", "vulkan", "metal", "cpu")
NAMES: Final = {
    "cuda13": "CUDA 13",
    "cuda12": "CUDA 12",
    "rocm": "ROCm",
    "vulkan": "Vulkan",
    "metal": "Metal",
    "cpu": "the CPU",
}
