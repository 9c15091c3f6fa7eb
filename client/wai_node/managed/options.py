"""The options of one deployment: how its server computes. Pure.

The words are those of the command line, the API and the dashboard too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from wai_node.models.fit import CacheType, Load, load_for
from wai_node.models.projector import Projector
from wai_node.models.shape import ModelShape
from wai_protocol.errors import AuthError, Fault, RequestError

CACHE_TYPES: Final = ("f16", "q8_0", "q4_0")
FLASH_ATTENTION: Final = ("auto", "on", "off")
MAX_GPU_LAYERS: Final = 1024
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
        *("-ngl", "--gpu-layers", "--n-gpu-layers", "--mmproj", "-mm", "--mmproj-url", "-mmu"),
        *("--embedding", "--embeddings", "--rerank", "--reranking", "--cache-ram", "-cram"),
        *("--lora", "--lora-scaled"),
        *("-v", "--verbose", "--log-verbose", "-lv", "--verbosity", "--log-verbosity"),
        *("--metrics", "--slots", "--no-slots", "--log-file", "--log-disable"),
    }
)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How a model is computed. `cache_type`: the numbers of its K/V cache. `gpu_layers` None: as
    many as fit. `engine_flags`: added to the server's, where the node's owner allows that.

    Raises `RequestError` for values that make no sense.
    """

    cache_type: str = "f16"
    gpu_layers: int | None = None
    flash_attention: str = "auto"
    engine_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cache_type not in CACHE_TYPES:
            raise RequestError(f"the cache type is one of {', '.join(CACHE_TYPES)}")
        if self.flash_attention not in FLASH_ATTENTION:
            raise RequestError(f"flash attention is one of {', '.join(FLASH_ATTENTION)}")
        if self.cache_type != "f16" and self.flash_attention == "off":
            raise RequestError("a quantised cache needs flash attention: leave it at auto, or on")
        if self.gpu_layers is not None and not 0 <= self.gpu_layers <= MAX_GPU_LAYERS:
            raise RequestError(f"the layers on the GPU are 0 to {MAX_GPU_LAYERS}, or auto")
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

    def check(self, *, flags_allowed: bool) -> None:
        """Raise `AuthError` if the node's owner does not allow these."""
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
    ) -> Load:
        """Return what determines the memory, as `load_for` does."""
        cache = CacheType(self.cache_type)
        return replace(
            load_for(shape, context_tokens, slots),
            cache_k=cache,
            cache_v=cache,
            flash_attention=self.flash_attention != "off",
            projector=projector,
        )

    def to_argv(self) -> list[str]:
        """Return the flags for llama-server, without the layers on the GPU."""
        argv: list[str] = []
        attention = self.flash_attention
        if self.cache_type != "f16":
            argv += ["--cache-type-k", self.cache_type, "--cache-type-v", self.cache_type]
            attention = "on"  # auto may turn it off, and then the server refuses the cache
        if attention != "auto":
            argv += ["--flash-attn", attention]
        return [*argv, *self.engine_flags]


DEFAULT: Final = ServeOptions()
