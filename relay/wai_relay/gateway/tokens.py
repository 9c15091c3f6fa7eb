"""A rough count of a prompt's tokens before a tokenizer saw it, calibrated as they come. Pure.

It decides where a prompt goes, never what it costs: costs are what the upstream reports.
"""

from __future__ import annotations

import math
from typing import Final

BYTES_PER_TOKEN: Final = 4.0  # English prose in UTF-8 under the common tokenizers: 3.5 to 4.5
LEAST_BYTES_PER_TOKEN: Final = 1.0
MOST_BYTES_PER_TOKEN: Final = 12.0
SMOOTHING: Final = 0.1  # a model's figure follows some ten requests
LEAST_TEXT_BYTES: Final = 200  # below, the chat template outweighs the text
IMAGE_TOKENS: Final = 800  # between LLaVA's 576 and what a 1 MP picture costs elsewhere
MOST_TEMPLATE_TOKENS: Final = 512  # around a prompt with tools; without, 20 to 40 are common
MAX_MODELS: Final = 1024  # figures kept; names come from callers only after a node knew them


class TokenEstimator:
    """Estimates prompt tokens from bytes of text, per model."""

    def __init__(self) -> None:
        self._bytes_per_token: dict[str, float] = {}
        self._template_tokens: dict[str, float] = {}

    def estimate(self, model: str, text_bytes: int, images: int = 0) -> int:
        """Tokens that `text_bytes` of prompt and `images` pictures are likely to be."""
        ratio = self._bytes_per_token.get(model, BYTES_PER_TOKEN)
        return math.ceil(text_bytes / ratio) + images * IMAGE_TOKENS

    def template(self, model: str, text_bytes: int) -> int:
        """Tokens that the chat template of `model` is likely to add to the estimate: 0 until a
        short prompt was counted, and for long prompts, whose estimate contains them."""
        if text_bytes >= LEAST_TEXT_BYTES:
            return 0
        return math.ceil(self._template_tokens.get(model, 0.0))

    def observe(self, model: str, text_bytes: int, tokens: int) -> None:
        """`text_bytes` of text without pictures were exactly `tokens` for `model`."""
        if tokens <= 0:
            return
        if text_bytes < LEAST_TEXT_BYTES:
            self._observe_template(model, tokens - self.estimate(model, text_bytes))
            return
        seen = min(max(text_bytes / tokens, LEAST_BYTES_PER_TOKEN), MOST_BYTES_PER_TOKEN)
        known = self._bytes_per_token.get(model)
        if known is None:
            if len(self._bytes_per_token) >= MAX_MODELS:
                return
            known = BYTES_PER_TOKEN
        self._bytes_per_token[model] = known + SMOOTHING * (seen - known)

    def _observe_template(self, model: str, more: int) -> None:
        """A short prompt was `more` tokens than its text. Follow a larger figure at once."""
        seen = float(min(max(more, 0), MOST_TEMPLATE_TOKENS))
        known = self._template_tokens.get(model)
        if known is None:
            if len(self._template_tokens) >= MAX_MODELS:
                return
            known = seen
        self._template_tokens[model] = max(seen, known + SMOOTHING * (seen - known))
