"""A rough count of a prompt's tokens before a tokenizer saw it, calibrated as they come. Pure.

It decides where a prompt goes, never what it costs: costs are what the upstream reports. Whether a
prompt is refused for its length is decided by `least_tokens`, which no estimate enters.
"""

from __future__ import annotations

import math
from typing import Final, TypeVar

from .prompt_size import IMAGE_TOKENS, LEAST_IMAGE_TOKENS, PromptSize, TextKind

BYTES_PER_TOKEN: Final = 4.0  # English prose in UTF-8 under the common tokenizers: 3.5 to 4.5
LEAST_BYTES_PER_TOKEN: Final = 1.0
MOST_BYTES_PER_TOKEN: Final = 12.0
SMOOTHING: Final = 0.1  # a model's figure follows some ten requests
LEAST_TEXT_BYTES: Final = 200  # below, the chat template outweighs the text
MOST_TEMPLATE_TOKENS: Final = 512  # around a prompt with tools; without, 20 to 40 are common
MAX_MODELS: Final = 1024  # figures kept; names come from callers only after a node knew them
# Of pictures, in parts of what `PromptSize` says: a model that makes 16 tokens of any picture, and
# one that needs four times as many as most.
LEAST_IMAGE_SCALE: Final = 0.02
MOST_IMAGE_SCALE: Final = 4.0
# A text whose words are all as long as the longest in common vocabularies, some 30 bytes. White
# space in runs and escapes are left out before.
LONGEST_TOKEN_BYTES: Final = 32

_Key = TypeVar("_Key")


class TokenEstimator:
    """Estimates prompt tokens from the size of a prompt, per model and kind of text."""

    def __init__(self) -> None:
        self._bytes_per_token: dict[tuple[str, TextKind], float] = {}
        self._template_tokens: dict[str, float] = {}
        self._image_scale: dict[str, float] = {}

    def estimate(self, model: str, prompt: PromptSize) -> int:
        """Tokens that a prompt is likely to be."""
        tokens = self._text_tokens(model, prompt)
        if prompt.images:
            tokens += prompt.image_tokens * self._image_scale.get(model, 1.0)
        return math.ceil(tokens)

    def template(self, model: str, prompt: PromptSize) -> int:
        """Tokens that the chat template of `model` is likely to add to the estimate: 0 until a
        short prompt was counted, and for long prompts, whose estimate contains them."""
        if prompt.text_bytes >= LEAST_TEXT_BYTES:
            return 0
        return math.ceil(self._template_tokens.get(model, 0.0))

    def observe(self, model: str, prompt: PromptSize, tokens: int) -> None:
        """`prompt` was exactly `tokens` for `model`."""
        if tokens <= 0:
            return
        if prompt.images:
            self._observe_images(model, prompt, tokens)
        elif prompt.text_bytes < LEAST_TEXT_BYTES:
            self._observe_template(model, tokens - self.estimate(model, prompt))
        else:
            self._observe_text(model, prompt, tokens)

    def _text_tokens(self, model: str, prompt: PromptSize) -> float:
        ratio = self._bytes_per_token.get((model, prompt.kind), BYTES_PER_TOKEN)
        return prompt.dense_bytes / ratio

    def _observe_text(self, model: str, prompt: PromptSize, tokens: int) -> None:
        seen = prompt.dense_bytes / tokens
        seen = min(max(seen, LEAST_BYTES_PER_TOKEN), MOST_BYTES_PER_TOKEN)
        _follow(self._bytes_per_token, (model, prompt.kind), seen, BYTES_PER_TOKEN)

    def _observe_images(self, model: str, prompt: PromptSize, tokens: int) -> None:
        """What its text does not account for, its pictures were. Recordings are among them, so that
        this is worth less where a model takes both."""
        for_images = tokens - self._text_tokens(model, prompt)
        seen = for_images / (prompt.image_tokens or IMAGE_TOKENS * prompt.images)
        seen = min(max(seen, LEAST_IMAGE_SCALE), MOST_IMAGE_SCALE)
        _follow(self._image_scale, model, seen, 1.0)

    def _observe_template(self, model: str, more: int) -> None:
        """A short prompt was `more` tokens than its text. Follow a larger figure at once."""
        seen = float(min(max(more, 0), MOST_TEMPLATE_TOKENS))
        if _follow(self._template_tokens, model, seen, seen):
            self._template_tokens[model] = max(seen, self._template_tokens[model])


def _follow(figures: dict[_Key, float], key: _Key, seen: float, first: float) -> bool:
    """Move the figure of `key`, which is `first` until something was seen, toward `seen`. False:
    there are too many already."""
    known = figures.get(key)
    if known is None:
        if len(figures) >= MAX_MODELS:
            return False
        known = first
    figures[key] = known + SMOOTHING * (seen - known)
    return True


def least_tokens(prompt: PromptSize) -> int:
    """Fewer tokens than `prompt` has for any model."""
    return prompt.dense_bytes // LONGEST_TOKEN_BYTES + prompt.images * LEAST_IMAGE_TOKENS
