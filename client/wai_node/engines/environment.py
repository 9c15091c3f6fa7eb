"""Select the environment variables that a managed server gets.

An allow-list of what programs and graphics drivers need, because secrets (proxy passwords, tokens,
the node's own settings) may have any name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_NAMES: Final = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "DYLD_FALLBACK_LIBRARY_PATH",
        "PYTHONHOME",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "ONEAPI_ROOT",
        "ZES_ENABLE_SYSMAN",
        "SYCL_CACHE_PERSISTENT",
        "DRI_PRIME",
        "LIBVA_DRIVER_NAME",
        "MALLOC_ARENA_MAX",
        "NO_COLOR",
    }
)
# Locale, graphics drivers, ggml's switches, thread pools. LLAMA_* stays out: it overrides flags.
_PREFIXES: Final = (
    "LC_",
    "XDG_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "ROCM_",
    "HSA_",
    "GPU_",
    "AMD_",
    "RADV_",
    "VK_",
    "MESA_",
    "GGML_",
    "SYCL_",
    "ONEAPI_",
    "ZE_",
    "MTL_",
    "METAL_",
    "OMP_",
    "KMP_",
    "OPENBLAS_",
    "MKL_",
)
# A name that suggests a secret is not passed on, whatever prefix it has.
_SECRET: Final = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE|_KEY|APIKEY|_URL\b", re.I)
# NVIDIA's library numbers its GPUs so; CUDA's own default is the fastest first.
_ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def server_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the part of `ours` that an inference server is started with."""
    return _ORDER | {
        name: value
        for name, value in ours.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not _SECRET.search(name)
    }
