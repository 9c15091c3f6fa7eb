"""The options of one deployment: how its server computes. Pure.

The words are those of the command line, the API and the dashboard too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from wai_node.models.draft import Draft
from wai_node.models.load import CacheType, Load, load_for
from wai_node.models.placement import Wanted
from wai_node.models.projector import Projector
from wai_node.models.shape import ModelShape
from wai_protocol.errors import AuthError, Fault, RequestError

CACHE_TYPES: Final = ("f16", "q8_0", "q4_0")
FLASH_ATTENTION: Final = ("auto", "on", "off")
MAX_GPU_LAYERS: Final = 1024
MAX_GPU_NUMBER: Final = 64  # the largest boxes have 16
MAX_DRAFT_TOKENS: Final = 64
REASONING_FORMATS: Final = ("auto", "none", "deepseek", "deepseek-legacy")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_ALIAS: Final = re.compile(r"[A-Za-z0-9][\w./:-]{0,95}", re.ASCII)
MAX_FLAGS: Final = 32
MAX_FLAG_CHARS: Final = 256
# The node says where a server listens, with which key, what it serves and how much it may take.
_OURS: Final = frozenset(
    {
        *("--host", "--port", "--reuse-port", "--path", "--api-prefix", "--api-key"),
        *("--api-key-file", "--ssl-key-file", "--ssl-cert-file", "--unix-socket"),
        *("-m", "--model", "-a", "--alias", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo"),
        *("-c", "--ctx-size", "-np", "--parallel", "-kvu", "--kv-unified", "--fit", "-fit"),
        *("-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-fa", "--flash-attn"),
        *("-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "-dev", "--device", "-mg", "--main-gpu"),
        *("-sm", "--split-mode", "-ts", "--tensor-split", "--reasoning-format"),
        *("-ngl", "--gpu-layers", "--n-gpu-layers", "--mmproj", "-mm", "--mmproj-url", "-mmu"),
        *("--embedding", "--embeddings", "--rerank", "--reranking", "--cache-ram", "-cram"),
        *("--lora", "--lora-scaled", "-md", "--model-draft", "--spec-draft-model", "--spec-type"),
        *("--spec-draft-n-max", "--spec-draft-device", "-devd", "--device-draft"),
        *("--spec-draft-ngl", "-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"),
        *("-v", "--verbose", "--log-verbose", "-lv", "--verbosity", "--log-verbosity"),
        *("--metrics", "--slots", "--no-slots", "--log-file", "--log-disable"),
    }
)


class ServeOptions(msgspec.Struct, frozen=True):
    """How a model is computed. `cache_type`: the numbers of its K/V cache. `gpu_layers` None: as
    many as fit. `cpu_moe`: of so many layers the experts are in RAM, None: of as few as fit.
    `gpus`: the numbers of the GPUs that may be used, empty: any. `reasoning_format`: what becomes
    of a model's thoughts. `draft_max`: how many tokens a draft model proposes at once.
    `alias`: a second name by which callers may ask for it.
    `engine_flags` and `environment` (NAME=VALUE) are added to the server's, where the node's owner
    allows that.

    Raises `RequestError` for values that make no sense.
    """

    cache_type: str = "f16"
    gpu_layers: int | None = None
    flash_attention: str = "auto"
    engine_flags: tuple[str, ...] = ()
    cpu_moe: int | None = None
    gpus: tuple[int, ...] = ()
    reasoning_format: str = "auto"
    environment: tuple[str, ...] = ()
    draft_max: int | None = None
    alias: str = ""

    def __post_init__(self) -> None:
        if self.cache_type not in CACHE_TYPES:
            raise RequestError(f"the cache type is one of {', '.join(CACHE_TYPES)}")
        if self.flash_attention not in FLASH_ATTENTION:
            raise RequestError(f"flash attention is one of {', '.join(FLASH_ATTENTION)}")
        if self.cache_type != "f16" and self.flash_attention == "off":
            raise RequestError("a quantised cache needs flash attention: leave it at auto, or on")
        if self.gpu_layers is not None and not 0 <= self.gpu_layers <= MAX_GPU_LAYERS:
            raise RequestError(f"the layers on the GPU are 0 to {MAX_GPU_LAYERS}, or auto")
        if self.cpu_moe is not None and not 0 <= self.cpu_moe <= MAX_GPU_LAYERS:
            raise RequestError(
                f"the layers whose experts stay in RAM are 0 to {MAX_GPU_LAYERS}, or auto"
            )
        if len(set(self.gpus)) != len(self.gpus) or not all(
            0 <= number < MAX_GPU_NUMBER for number in self.gpus
        ):
            raise RequestError("GPUs are given by their numbers, each once, such as 0,1; or auto")
        if self.draft_max is not None and not 1 <= self.draft_max <= MAX_DRAFT_TOKENS:
            raise RequestError(f"a draft has 1 to {MAX_DRAFT_TOKENS} tokens")
        if self.alias and not _ALIAS.fullmatch(self.alias):
            raise RequestError(
                f"an alias is up to 96 letters, digits and . _ - / :, not {self.alias[:40]!r}"
            )
        if self.reasoning_format not in REASONING_FORMATS:
            raise RequestError(f"the reasoning format is one of {', '.join(REASONING_FORMATS)}")
        if len(self.environment) > MAX_FLAGS:
            raise RequestError(f"a deployment has at most {MAX_FLAGS} environment variables")
        for variable in self.environment:
            _check_variable(variable)
        if len(self.engine_flags) > MAX_FLAGS:
            raise RequestError(f"a deployment has at most {MAX_FLAGS} engine flags")
        for flag in self.engine_flags:
            if not flag or len(flag) > MAX_FLAG_CHARS or not flag.isprintable():
                raise RequestError(f"an engine flag is a printable word, not {flag[:40]!r}")
            if flag.partition("=")[0] in _OURS:
                raise RequestError(f"the node sets {flag.partition('=')[0]} itself")

    def changed(self, **given: Any) -> ServeOptions:
        """Return these options with the `given` ones replaced. Raises `RequestError`."""
        return replace(self, **given)

    @property
    def wanted(self) -> Wanted:
        """What is wanted of where the layers are."""
        return Wanted(self.gpu_layers, self.cpu_moe, self.gpus)

    def check(self, *, flags_allowed: bool, environment_allowed: Collection[str] = ()) -> None:
        """Raise `AuthError` if the node's owner does not allow these."""
        for variable in self.environment:
            name = variable.partition("=")[0]
            if name not in environment_allowed:
                raise AuthError(
                    f"this node's servers take no environment variable {name}; its owner allows it"
                    f' by `allow_environment = ["{name}"]` below [deploy] in the node\'s settings',
                    Fault.FORBIDDEN,
                )
        if self.engine_flags and not flags_allowed:
            raise AuthError(
                "this node takes no engine flags; its owner allows them by `allow_engine_flags ="
                " true` below [deploy] in the node's settings",
                Fault.FORBIDDEN,
            )

    def load(
        self,
        shape: ModelShape,
        context_tokens: int,
        slots: int,
        projector: Projector | None = None,
        draft: Draft | None = None,
    ) -> Load:
        """Return what determines the memory, as `load_for` does."""
        cache = CacheType(self.cache_type)
        return replace(
            load_for(shape, context_tokens, slots),
            cache_k=cache,
            cache_v=cache,
            flash_attention=self.flash_attention != "off",
            projector=projector,
            draft=draft,
        )

    def to_argv(self) -> list[str]:
        """Return the flags for llama-server, without where the layers are."""
        argv: list[str] = []
        attention = self.flash_attention
        if self.cache_type != "f16":
            argv += ["--cache-type-k", self.cache_type, "--cache-type-v", self.cache_type]
            attention = "on"  # auto may turn it off, and then the server refuses the cache
        if attention != "auto":
            argv += ["--flash-attn", attention]
        if self.reasoning_format != "auto":
            argv += ["--reasoning-format", self.reasoning_format]
        return [*argv, *self.engine_flags]


def _check_variable(variable: str) -> None:
    name, given, _ = variable.partition("=")
    if not given or not _VARIABLE.fullmatch(name) or not variable.isprintable():
        raise RequestError(
            f"an environment variable is NAME=VALUE in printable characters, not {variable[:40]!r}"
        )
    if len(variable) > MAX_FLAG_CHARS:
        raise RequestError(f"{name} has more than {MAX_FLAG_CHARS} characters")
    if name.startswith("LLAMA_"):
        raise RequestError(f"{name} would change what the node sets itself")


DEFAULT: Final = ServeOptions()
