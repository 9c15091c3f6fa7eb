"""A managed server's environment has what drivers need, and no secret of whatever name."""

from __future__ import annotations

import pytest

from wai_node.engines.environment import server_environment

ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # in which NVIDIA's library numbers its GPUs


@pytest.mark.parametrize(
    "name",
    [
        *("WAI_NODE_UPSTREAMS", "WAI_NODE_DATA", "HF_TOKEN", "HTTPS_PROXY", "https_proxy"),
        *("ALL_PROXY", "OPENAI_API_KEY", "AWS_ACCESS_KEY_ID", "PGPASS", "DATABASE_URL", "DSN"),
        *("SSH_AUTH_SOCK", "GITHUB_PAT", "NETRC", "LLAMA_ARG_HOST", "LLAMA_API_KEY", "LD_PRELOAD"),
        *("XDG_SESSION_COOKIE", "CUDA_API_KEY", "GGML_RPC_SECRET", "MKL_LICENSE_TOKEN", "lc_all"),
    ],
)
def test_what_is_not_known_to_be_needed_is_not_passed_on(name: str) -> None:
    assert server_environment({name: "secret"}) == ORDER


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "XDG_RUNTIME_DIR"),
        *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("HSA_OVERRIDE_GFX_VERSION", "VK_ICD_FILENAMES", "GGML_VK_VISIBLE_DEVICES"),
        *("MESA_SHADER_CACHE_DIR", "OMP_NUM_THREADS"),
    ],
)
def test_what_drivers_need_is_passed_on(name: str) -> None:
    assert server_environment({name: "value"}) == {name: "value"} | ORDER


def test_who_sets_cudas_order_knows_why() -> None:
    mine = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert server_environment(mine) == mine
