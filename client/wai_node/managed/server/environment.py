"""What of our environment a managed server gets: what programs and graphics drivers need, by name.

An allow-list: the node's own settings, proxies' passwords and tokens have names of any form.
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
# Whatever a name begins with: one that says that it holds a secret is not passed on.
_SECRET: Final = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE|_KEY|APIKEY|_URL\b", re.I)


def server_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The part of `ours` that an inference server is started with."""
    return {
        name: value
        for name, value in ours.items()
        if (name in _NAMES or name.startswith(_PREFIXES)) and not _SECRET.search(name)
    }
