"""What a translation is: one request in the words of another dialect, and its answer's way back.

A translation belongs to one request. It is made from the caller's body, gives the body that the
upstream gets, and makes the objects that translate the answer. Pure.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.surface import OPENAI_ROUTES, Route

from .chat_stream import ChatStream

CHAT_ROUTE: Final = next(one for one in OPENAI_ROUTES if one.path == "/v1/chat/completions")
EMBEDDINGS_ROUTE: Final = next(one for one in OPENAI_ROUTES if one.path == "/v1/embeddings")
ENCODER: Final = msgspec.json.Encoder()

_PROMPTS: Final = frozenset({"messages", "system", "input", "prompt", "images"})
"""Fields that may be long, and that no answer repeats."""

Body = dict[str, Any]
"""A decoded JSON object."""


class Asked(msgspec.Struct, frozen=True):
    """What a translation is told of its request. `prompt_tokens` is an estimate; `now` tells the
    time in seconds since 1970; `new_id` makes the random part of an identifier; `context_tokens`
    is the model's largest context, if it is known; `capabilities` are asked for where they are
    told: what its nodes say of it."""

    model: str
    prompt_tokens: int
    now: Callable[[], float]
    new_id: Callable[[], str]
    context_tokens: int | None = None
    capabilities: Callable[[], Collection[str]] = tuple


class Translation(abc.ABC):
    """See the module. `upstream` is the route that the upstream is asked by."""

    upstream: Route = CHAT_ROUTE

    def __init__(self, body: Body, asked: Asked) -> None:
        """Raises `RequestError`, which names the field, where the request cannot be translated."""
        self.body = body
        self.asked = asked
        self.request = self._request()
        """The upstream's body, without `model`."""

    def forget_prompt(self) -> None:
        """The request was sent: keep of it only what the answer needs."""
        self.request = {}
        self.body = {name: self.body[name] for name in self.body if name not in _PROMPTS}

    @abc.abstractmethod
    def _request(self) -> Body:
        """The request in the upstream's dialect. Raises `RequestError`."""

    @abc.abstractmethod
    def answer(self, document: Body) -> bytes:
        """A whole answer in the caller's dialect."""

    @abc.abstractmethod
    def stream(self) -> ChatStream:
        """Who translates a streamed answer. Called where the caller asked for a stream."""


def refusal(field: str, why: str = "") -> RequestError:
    """The error for a field that has no counterpart at the upstream."""
    reason = why or "is not available for this model, whose server only has chat completions"
    return RequestError(f"`{field}` {reason}.")


def dicts(value: object, field: str) -> list[Body]:
    """`value` as a list of objects, [] where it is missing. Raises `RequestError`."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise refusal(field, "must be a list of objects")
    return value


def text_of(value: object, field: str) -> str:
    """`value` as text, "" where it is missing. Raises `RequestError`."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refusal(field, "must be a string")
    return value


def kept(body: Body, names: dict[str, str]) -> Body:
    """The fields of `body` that exist at the upstream, by the upstream's names."""
    return {theirs: body[ours] for ours, theirs in names.items() if body.get(ours) is not None}
