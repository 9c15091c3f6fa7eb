"""Reads what an answer says of its own cost, in the last bytes that came of it. Pure.

llama.cpp writes `timings` at the end of an OpenAI answer, and into every chunk if it was asked to;
Anthropic's events name the written tokens alone. Inside a JSON string quotes are escaped, so no
answer can pretend to be one.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from wai_node.upstreams.tally import TokensSpent
from wai_protocol.foreign_json import ForeignJsonError, read_json

# Fewer tokens than this take next to no time, or only that of a start: llama-server tells a million
# tokens a second of an answer of one.
LEAST_READ: Final = 64
LEAST_WRITTEN: Final = 8
_TIMINGS: Final = b'"timings":'
_OUTPUT: Final = re.compile(rb'"output_tokens":(\d{1,9})')


class Timings(msgspec.Struct):
    """llama.cpp's `timings`: tokens, and tokens per second."""

    cache_n: int | None = None
    prompt_n: int | None = None
    predicted_n: int | None = None
    prompt_per_second: float | None = None
    predicted_per_second: float | None = None

    @property
    def read_tps(self) -> float | None:
        """How fast the prompt was read; None where so few tokens were that it shows nothing."""
        shows = self.prompt_n is None or self.prompt_n >= LEAST_READ
        return self.prompt_per_second if shows else None

    @property
    def written_tps(self) -> float | None:
        """How fast the answer was written, or None as above."""
        shows = self.predicted_n is None or self.predicted_n >= LEAST_WRITTEN
        return self.predicted_per_second if shows else None


def timings_in(tail: bytes) -> Timings | None:
    """The last `timings` in `tail`, None where there are none."""
    at = tail.rfind(_TIMINGS)
    end = tail.find(b"}", at)
    if at < 0 or end < 0:
        return None
    try:
        return read_json(tail[at + len(_TIMINGS) : end + 1], Timings, "timings")
    except ForeignJsonError:
        return None


def spent_in(tail: bytes) -> TokensSpent:
    """What the answer took, as far as `tail` says."""
    return spent_by(timings_in(tail), tail)


def spent_by(timings: Timings | None, tail: bytes) -> TokensSpent:
    """The same where the `timings` in `tail` were read already."""
    if timings is not None:
        return TokensSpent(
            timings.prompt_n,
            timings.cache_n,
            timings.predicted_n,
            timings.predicted_per_second,
        )
    found = _OUTPUT.findall(tail)
    return TokensSpent(written=int(found[-1])) if found else TokensSpent()
