"""How long a prompt is: its bytes, what kind of text they are, and its pictures. Pure.

Bytes alone say little: indentation, escapes and Chinese cost other tokens a byte than prose. What
tells them apart is counted in samples, an eighth of a long text, so that it costs little.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from .pictures import pixels_of

# A picture's tokens go with its pixels up to what a model takes; these are between what the common
# families need (LLaVA 576, Gemma 256, Qwen one for 784 pixels).
PIXELS_PER_TOKEN: Final = 1250
FEWEST_IMAGE_TOKENS: Final = 64
MOST_IMAGE_TOKENS: Final = 4096
IMAGE_TOKENS: Final = 800  # of what does not tell its size: a picture of 1 MP
LEAST_IMAGE_TOKENS: Final = 4  # below what any model needs: Qwen takes one for each 28 x 28 pixels

SAMPLE_BYTES: Final = 512
SAMPLE_EVERY_BYTES: Final = 4096
_FIRST_SAMPLE: Final = 1024  # a shorter prompt has room anywhere, whatever it is
_ASCII: Final = bytes(range(128))
_SPACES_PER_TOKEN: Final = 4  # times as many as other bytes have: tokens of 16 spaces are common
_ESCAPED_BYTES: Final = 2  # \uXXXX has six; the character three in UTF-8, its backslash is counted
MANY_SPACES: Final = 0.08  # of a text: it is indented
MANY_WIDE: Final = 0.3  # of a text: it is not written in Latin letters


class TextKind(enum.StrEnum):
    """What a text is, as far as its bytes for each token depend on it."""

    PROSE = "prose"
    INDENTED = "indented"  # code, or JSON
    WIDE = "wide"  # Chinese, Cyrillic, …: its characters have several bytes, or are escaped


_PROSE: Final = TextKind.PROSE  # what nearly all is; a member takes long to look up


class PromptSize(msgspec.Struct, frozen=True):
    """A prompt's size. `text_bytes`: of its JSON, pictures and framing aside, of which `saved` are
    escapes and white space that cost no tokens, or few; `spaces` of white space in runs, and `wide`
    of characters that are not ASCII, about. `images` also counts recordings; `image_tokens` are
    what a model of middling appetite makes of them."""

    text_bytes: int = 0
    images: int = 0
    saved: int = 0
    spaces: int = 0
    wide: int = 0
    image_tokens: int = 0

    @property
    def kind(self) -> TextKind:
        """What most of the text is."""
        if self.wide > MANY_WIDE * self.text_bytes:
            return TextKind.WIDE
        if self.spaces > MANY_SPACES * self.text_bytes:
            return TextKind.INDENTED
        return _PROSE

    @property
    def dense_bytes(self) -> int:
        """Bytes of text by which its tokens are estimated."""
        dense = self.text_bytes - self.saved
        return dense if dense > 0 else 0


NO_PROMPT: Final = PromptSize()


def tokens_of_image(pixels: int | None) -> int:
    """What a picture is likely to cost; None: its size is not known."""
    if pixels is None:
        return IMAGE_TOKENS
    return min(max(pixels // PIXELS_PER_TOKEN, FEWEST_IMAGE_TOKENS), MOST_IMAGE_TOKENS)


class PromptMeter:
    """Adds up a prompt that comes in pieces."""

    __slots__ = (
        *("_at", "_escapes", "_runs", "_sampled", "_unicode", "_wide"),
        *("image_tokens", "images", "text"),
    )

    def __init__(self) -> None:
        self.text = 0
        """Bytes of text; whoever finds a prompt's parts adds them."""
        self.images = 0
        self.image_tokens = 0
        self._at = 0
        self._sampled = 0
        self._runs = 0
        self._escapes = 0
        self._unicode = 0
        self._wide = 0

    def sample(self, data: bytes, start: int, stop: int) -> None:
        """Look at the next piece of the prompt, `data[start:stop]`, here and there. What passes by
        here counts by its place, so that it does not matter where it is cut."""
        at = self._at
        self._at = at + stop - start
        if self._at <= _FIRST_SAMPLE:
            return
        begin = (at - _FIRST_SAMPLE) // SAMPLE_EVERY_BYTES * SAMPLE_EVERY_BYTES + _FIRST_SAMPLE
        for window in range(begin, self._at, SAMPLE_EVERY_BYTES):
            first = max(window, at)
            last = min(window + SAMPLE_BYTES, self._at)
            if 0 <= first < last:
                self._count(data[start + first - at : start + last - at])

    def _count(self, sample: bytes) -> None:
        self._sampled += len(sample)
        if not sample.isascii():
            self._wide += len(sample.translate(None, _ASCII))
        if escapes := sample.count(b"\\"):
            self._escapes += escapes
            self._unicode += sample.count(b"\\u")
        if b" " in sample:
            self._runs += 2 * sample.count(b"  ")
        if escapes:
            self._runs += 2 * sample.count(b"\\t")

    def add_image(self, base64: bytes) -> None:
        """A picture or recording stands in the prompt; `base64` is its beginning, or all of it."""
        self.images += 1
        self.image_tokens += tokens_of_image(pixels_of(base64))

    def size(self) -> PromptSize:
        """All that was seen so far."""
        text = max(self.text, 0)
        if not self._sampled:
            return PromptSize(text, self.images, image_tokens=self.image_tokens)
        scale = self._at / self._sampled
        spaces = self._runs * scale
        escapes = (self._escapes + _ESCAPED_BYTES * self._unicode) * scale
        saved = spaces * (_SPACES_PER_TOKEN - 1) / _SPACES_PER_TOKEN + escapes
        wide = (self._wide + 6 * self._unicode) * scale
        return PromptSize(
            text,
            self.images,
            min(int(saved), text * 3 // 4),
            min(int(spaces), text),
            min(int(wide), text),
            self.image_tokens,
        )
