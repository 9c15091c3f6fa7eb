"""LM Studio's own dialect: /api/v0/… and /api/v1/chat, and its lists of models. Pure.

Its answers under /api/v0 are OpenAI's with a few fields more. A chat under /api/v1 names its input
`input`, and its stream ends with `chat.end`.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from wai_protocol.errors import Fault, RequestError
from wai_protocol.status import TOOLS, VISION
from wai_protocol.surface import LM_STUDIO_API, LM_STUDIO_ROUTES, Route
from wai_relay.contracts.records import TokenCounts
from wai_relay.gateway.catalog import Catalog, CatalogModel

from .dialect import EVENT_STREAM, NDJSON, Signal, SignalOf, is_error
from .openai import OpenAiDialect, chat_signal, text_signal
from .usage import END_MARK, BodyReader, EventReader, UsageReader, count, last_object

V0_MODELS: Final = "/api/v0/models"
V1_MODELS: Final = "/api/v1/models"
V1_CHAT: Final = "/api/v1/chat"
V0_CHAT: Final = "/api/v0/chat/completions"
V0_COMPLETIONS: Final = "/api/v0/completions"
_ANSWER_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    V1_CHAT: ("output", "stats"),
    V0_CHAT: ("choices",),
    V0_COMPLETIONS: ("choices",),
    "/api/v0/embeddings": ("data",),
}


class LmStudioDialect(OpenAiDialect):
    """See `Dialect`."""

    name = LM_STUDIO_API
    routes: ClassVar[tuple[Route, ...]] = LM_STUDIO_ROUTES
    error_prefixes: ClassVar[tuple[str, ...]] = ("/api/v0/", V1_CHAT, V1_MODELS)
    aliases: ClassVar[dict[str, str]] = {}

    def reader(
        self,
        route: Route,
        content_type: bytes,
        *,
        strip_usage: bool = False,
        strip_timings: bool = False,
    ) -> UsageReader:
        """See `Dialect`."""
        if route.path != V1_CHAT:
            return super().reader(
                route, content_type, strip_usage=strip_usage, strip_timings=strip_timings
            )
        if content_type.startswith(EVENT_STREAM):
            return LmStudioEvents()
        return LmStudioBody(lines=content_type.startswith(NDJSON))

    def signal_of(self, route: Route) -> SignalOf:
        """See `Dialect`."""
        return {V0_CHAT: chat_signal, V0_COMPLETIONS: text_signal}.get(route.path, chat_event)

    def answer_fields(self, route: Route) -> tuple[str, ...]:
        """See `Dialect`."""
        return _ANSWER_FIELDS.get(route.path, ())

    def is_list(self, path: str) -> bool:
        """See `Dialect`."""
        return path in (V0_MODELS, V1_MODELS) or path.startswith(V0_MODELS + "/")

    def list_answer(self, path: str, catalog: Catalog) -> object:
        """See `Dialect`. OpenRouter's clients ask for `/api/v1/models` too, so that has both."""
        if path == V0_MODELS:
            return {"object": "list", "data": [_v0_entry(model) for model in catalog.models()]}
        if path == V1_MODELS:
            listed = super().list_answer("/v1/models", catalog)
            assert isinstance(listed, dict)
            return {"models": [_v1_entry(model) for model in catalog.models()], **listed}
        name = unquote(path[len(V0_MODELS) + 1 :])
        found = catalog.find(name)
        if found is None:
            raise RequestError(f"There is no model `{name[:256]}`.", Fault.MODEL_NOT_FOUND)
        return _v0_entry(found)


LM_STUDIO: Final = LmStudioDialect()


class LmStudioEvents(EventReader):
    """A streamed chat; its last event repeats the whole answer, with the counts in `stats`."""

    piece = b'"message.delta"'
    end_mark = re.compile(END_MARK.pattern + rb'|"chat\.end"')

    def feed(self, data: bytes) -> bytes:
        """See `EventReader`."""
        if b'"stats"' in data:
            self.said = _counts(last_object(data, b"stats")) or self.said
        return super().feed(data)

    def observe(self, payload: Any) -> bool:
        """See `EventReader`. Its figures are called `stats`; `feed` looks for them."""
        del payload
        return True


class LmStudioBody(BodyReader):
    """A whole answer as one document."""

    def figures(self, text: bytes) -> TokenCounts | None:
        """See `BodyReader`."""
        return _counts(last_object(text, b"stats"))


def chat_event(name: str, payload: dict[str, Any]) -> Signal:
    """An event of `/api/v1/chat`."""
    kind = str(payload.get("type") or name)
    if kind == "error" or is_error(name, payload):
        return Signal.ERROR
    if kind == "chat.end":
        return Signal.END
    says = bool(payload.get("content")) if kind.endswith(".delta") else kind == "tool_call.name"
    return Signal.CONTENT if says else Signal.PREAMBLE


def _counts(stats: dict[str, Any] | None) -> TokenCounts | None:
    if stats is None or "total_output_tokens" not in stats:
        return None
    return TokenCounts(
        prompt=count(stats.get("input_tokens")),
        completion=count(stats.get("total_output_tokens")),
        exact=True,
    )


def _v0_entry(model: CatalogModel) -> dict[str, Any]:
    kind = "embeddings" if model.kind == "embedding" else "llm"
    return {
        "id": model.id,
        "object": "model",
        "type": "vlm" if VISION in model.capabilities else kind,
        "publisher": "wai",
        "arch": "",
        "compatibility_type": "",
        "quantization": "",
        "state": "not-loaded" if model.loaded is False else "loaded",
        "max_context_length": model.context_tokens or 0,
    }


def _v1_entry(model: CatalogModel) -> dict[str, Any]:
    instance = {"id": model.id, "config": {"context_length": model.context_tokens or 0}}
    return {
        "type": "embedding" if model.kind == "embedding" else "llm",
        "publisher": "wai",
        "key": model.id,
        "display_name": model.id,
        "architecture": None,
        "quantization": None,
        "size_bytes": model.size_bytes or 0,
        "params_string": None,
        "loaded_instances": [] if model.loaded is False else [instance],
        "max_context_length": model.context_tokens or 0,
        "format": None,
        "capabilities": {
            "vision": VISION in model.capabilities,
            "trained_for_tool_use": TOOLS in model.capabilities,
        },
    }
