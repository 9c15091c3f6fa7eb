"""vLLM as a managed server: where it is, with what it is started, what its complaints mean.

The key is passed in the environment. It listens at our unix socket alone, loads from the model's
folder, and asks no hub: what is there was verified. It never runs a repository's own code.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from wai_node.managed.deployment import Wish
from wai_node.managed.options import ServeOptions
from wai_node.managed.wanted import WantedModel
from wai_node.models.model_config import ModelConfig, read_config
from wai_protocol.errors import Fault, RequestError, TransportError
from wai_protocol.foreign_json import ForeignJsonError, read_json

from .health import Health, Served

SERVER: Final = "vllm"
LOAD_BASE_S: Final = 900.0  # it compiles kernels and records CUDA graphs before it is ready
CONFIG_LIMIT_BYTES: Final = 4 << 20
EIGHT_BIT: Final = "q8_0"
DEFAULT_SHARE: Final = 0.9  # vLLM's own
NO_VLLM: Final = "no `vllm` is on this node's PATH: install vLLM there, and start the node again"
HINTS: Final = (
    (
        re.compile(r"unrecognized arguments: .{0,200}--uds"),
        "this vLLM can't listen at a unix socket; update it",
    ),
    (
        re.compile(r"unrecognized arguments: (--[\w-]{1,60})"),
        "this vLLM does not know the option {0}; update it",
    ),
    (
        re.compile(r"KV cache is needed, which is larger|larger than the maximum number of tokens"),
        "the GPU has too little memory for this context; deploy it with a smaller one",
    ),
    (
        re.compile(r"is less than desired GPU memory utilization"),
        "another process has taken the GPU's memory meanwhile; end it, and deploy again",
    ),
    (
        re.compile(r"Model architectures .{0,100}(?:not supported|failed to be inspected)"),
        "this vLLM does not know the model's architecture; update it",
    ),
    (
        re.compile(r"does not recognize this architecture"),
        "this vLLM's transformers do not know the model's architecture; update vLLM",
    ),
    (
        re.compile(r"trust_remote_code"),
        "the model needs code of its repository, which this node does not run",
    ),
    (
        re.compile(r"No CUDA GPUs are available|Failed to infer device type"),
        "this vLLM finds no GPU that it can use; see whether the graphics driver works",
    ),
)


class VllmOptions(msgspec.Struct, frozen=True):
    """How vLLM serves a model from `folder`. `gpu_share`: what it takes of its GPU's memory."""

    folder: Path
    alias: str
    context_tokens: int
    slots: int
    gpu_share: float
    cache_type: str = "f16"

    def to_argv(self, socket: Path) -> list[str]:
        """Return what follows `vllm serve`."""
        return [
            str(self.folder),
            *("--served-model-name", self.alias, "--uds", str(socket)),
            *("--max-model-len", str(self.context_tokens), "--max-num-seqs", str(self.slots)),
            *("--gpu-memory-utilization", f"{self.gpu_share:.2f}"),
            *("--kv-cache-dtype", "fp8" if self.cache_type == EIGHT_BIT else "auto"),
            "--disable-uvicorn-access-log",
        ]

    def environment(self, key: str) -> dict[str, str]:
        """Return what it gets in its environment beside what all servers get."""
        offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        quiet = dict.fromkeys(("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"), "1")
        return {"VLLM_API_KEY": key, **offline, **quiet}


def vllm_options(model: WantedModel, file: Path, wish: Wish) -> VllmOptions:
    """Return how `model` is served as it is wished; `file` is one of its files."""
    return VllmOptions(
        file.parent,
        model.alias,
        wish.context_tokens,
        wish.slots,
        DEFAULT_SHARE if wish.gpu_share is None else wish.gpu_share,
        wish.options.cache_type,
    )


def find_vllm() -> tuple[str, ...]:
    """Return how vLLM is run: from PATH, or beside this Python. Empty if it is not there."""
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which("vllm") or (str(beside) if os.access(beside, os.X_OK) else None)
    return () if found is None else (found, "serve")


def check_vllm(options: ServeOptions, mmproj: str | None) -> None:
    """Raise `RequestError` unless vLLM is here and can do what is asked for."""
    if not find_vllm():
        raise RequestError(NO_VLLM, Fault.NOT_FOUND)
    placed = options.gpu_layers is not None or options.cpu_moe is not None or options.gpus
    more = options.engine_flags or options.environment or options.reasoning_format != "auto"
    asked = placed or more or options.draft_max is not None or mmproj is not None
    if asked or options.flash_attention != "auto" or options.cache_type == "q4_0":
        raise RequestError(
            "of the options vLLM takes the context, the slots, the idle time and a cache of f16 or"
            " q8_0 (FP8); leave the others out"
        )


def read_config_file(folder: Path) -> ModelConfig:
    """Read the config.json of a downloaded model. Raises `WaiError`. Blocking."""
    path = folder / "config.json"
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_LIMIT_BYTES + 1)
    except OSError as error:
        raise TransportError(f"{path} can't be read: {error.strerror}") from error
    return read_config(
        read_json(content, dict[str, Any], "config.json", limit_bytes=CONFIG_LIMIT_BYTES)
    )


class _Listed(msgspec.Struct):
    max_model_len: int


class _List(msgspec.Struct):
    data: list[_Listed]


class VllmHealth(Health):
    """As `Health`. `slots` is what it was told."""

    def __init__(self, url: str, key: str, slots: int) -> None:
        super().__init__(url, key)
        self._slots = slots

    async def served(self) -> Served:
        """See `Health`."""
        status, _, body = await self._get("/v1/models", with_key=True)
        try:
            listed = read_json(body, _List, "the answer to /v1/models").data
        except ForeignJsonError:
            listed = []
        if not listed:
            raise TransportError(
                f"vLLM answered {status} to /v1/models, without its context", Fault.UPSTREAM_BROKE
            )
        return Served(listed[0].max_model_len, self._slots)
