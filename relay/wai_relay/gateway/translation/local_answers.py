"""Requests that the relay itself answers where the model's server has no counterpart. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .translation import ENCODER, Asked, Body


def count_tokens(body: Body, asked: Asked) -> bytes:
    """Anthropic's `/v1/messages/count_tokens`, by estimate."""
    del body
    return ENCODER.encode({"input_tokens": max(asked.prompt_tokens, 1)})


LOCAL_ANSWERS: Final[dict[str, Callable[[Body, Asked], bytes]]] = {
    "/v1/messages/count_tokens": count_tokens,
}
