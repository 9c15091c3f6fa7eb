"""Which kinds of inference server there are, in the order in which they are detected.

Ours are in the table below, the generic one last, because it takes what the others leave. Other
packages add theirs by the entry-point group `wai.upstreams` (docs/extending.md); these are asked
first, because many servers imitate one that we know.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from wai_protocol.errors import RequestError
from wai_transport.plugins import load_plugins

from .llama_server import LlamaServerUpstream
from .lm_studio import LmStudioUpstream
from .ollama import OllamaUpstream
from .openai import OpenAIUpstream
from .upstream import Asker, Upstream
from .vllm import VllmUpstream

ENTRY_POINTS: Final = "wai.upstreams"

_log = logging.getLogger("wai.node")


class UpstreamKinds:
    """The kinds that one node knows. It is never changed; `preceded_by` makes a longer one."""

    def __init__(self, *kinds: type[Upstream]) -> None:
        """Raises `RequestError` where two kinds share a name."""
        self._kinds = kinds
        names = [kind.kind for kind in kinds]
        if len(set(names)) < len(names):
            raise RequestError(f"Two kinds of upstream have one name: {', '.join(sorted(names))}.")

    def __iter__(self) -> Iterator[type[Upstream]]:
        return iter(self._kinds)

    def preceded_by(self, kind: type[Upstream]) -> UpstreamKinds:
        """`kind`, then these. Raises `RequestError` as the constructor does."""
        return UpstreamKinds(kind, *self._kinds)

    @property
    def usual_ports(self) -> tuple[int, ...]:
        """Where to look for them on this machine."""
        return tuple(dict.fromkeys(port for kind in self._kinds for port in kind.usual_ports))

    async def detect(self, asker: Asker) -> type[Upstream] | None:
        """The first kind that says it is what answers `asker`."""
        for kind in self._kinds:
            try:
                if await kind.detect(asker):
                    return kind
            except Exception as error:
                if asker.lost:
                    return None
                _log.warning("the upstream kind `%s` failed to detect: %r", kind.kind, error)
        return None


KINDS: Final = UpstreamKinds(
    LlamaServerUpstream, OllamaUpstream, LmStudioUpstream, VllmUpstream, OpenAIUpstream
)
"""Those that the node comes with."""


def installed_kinds() -> UpstreamKinds:
    """Ours, and those of the packages installed beside us. One that can't be used is left out."""
    kinds = KINDS

    def accept(plugin: object) -> None:
        nonlocal kinds
        if not (isinstance(plugin, type) and issubclass(plugin, Upstream)):
            raise RequestError("It is not a subclass of `Upstream`.")
        if not isinstance(getattr(plugin, "kind", None), str) or not plugin.kind:
            raise RequestError("It has no `kind`.")
        kinds = kinds.preceded_by(plugin)

    load_plugins(ENTRY_POINTS, accept)
    return kinds
