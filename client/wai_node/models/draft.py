"""A draft model: a small one that proposes tokens, which a larger one then checks. Pure.

llama-server demands that both have the same vocabulary, but says so only when both are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from wai_protocol.errors import RequestError

from .gguf_header import LongArray, Value
from .shape import ModelShape, Purpose

NO_DRAFT: Final = "none"
MAX_SIZE_DIFFERENCE: Final = 128  # tokens (llama.cpp's SPEC_VOCAB_MAX_SIZE_DIFFERENCE)
_KIND, _RULES, _TOKENS = (f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens"))


class Draft(msgspec.Struct, frozen=True):
    """A draft model, as far as its memory goes."""

    shape: ModelShape
    weights_bytes: int


def check_draft(
    name: str, draft: Mapping[str, Value], model: Mapping[str, Value], shape: ModelShape
) -> None:
    """Raise `RequestError` unless the file `name` can draft for a model, by both files' metadata.

    `shape`: the draft's.
    """
    if shape.purpose is not Purpose.CHAT:
        raise RequestError(f"{name} is no draft model: it writes no text")
    for key, what in ((_KIND, "kind of vocabulary"), (_RULES, "rules for splitting text")):
        mine, its = model.get(key), draft.get(key)
        if mine is not None and its is not None and mine != its:
            raise RequestError(
                f"{name} can't draft for this model: its {what} is {str(its)[:64]!r}, and this"
                f" model's is {str(mine)[:64]!r}; take a smaller model of the same family"
            )
    mine_size, its_size = _size(model), _size(draft)
    if mine_size and its_size and abs(mine_size - its_size) > MAX_SIZE_DIFFERENCE:
        raise RequestError(
            f"{name} can't draft for this model: it has {its_size} tokens, and this model"
            f" {mine_size}; take a smaller model of the same family"
        )


def _size(metadata: Mapping[str, Value]) -> int:
    """How many tokens a vocabulary has; 0 if that is not told."""
    tokens = metadata.get(_TOKENS)
    return tokens.count if isinstance(tokens, LongArray) else 0
