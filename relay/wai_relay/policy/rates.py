"""What the relay learns from what it served: how fast nodes read and write, how long answers are.

Rates are ratios of sums that fade (tokens over seconds), so that a hundred tiny prompts, which
say little about a node's speed, don't outweigh a large one. Until something was measured a node
counts as as fast as the fastest known one: it is tried soon, and then it is known.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

# What was learned fades to a half after about seven samples of the same size.
FADE: Final = 0.9
# When nothing at all is known: a small model on a plain GPU.
PRIOR_PREFILL_TPS: Final = 800.0
PRIOR_DECODE_TPS: Final = 30.0
# No estimate divides by less: a node that stalled is slow, not infinitely far away.
LEAST_TPS: Final = 0.5
# A node's own figure counts like this much measured time, so that both move the rate.
REPORT_WEIGHT_S: Final = 0.5
# Expected answer before any was seen, in tokens: between the means of two public chat traces.
PRIOR_OUTPUT_TOKENS: Final = 256.0
OUTPUT_FADE: Final = 0.05
# Pairs of key and model whose answers' lengths are remembered; about 200 bytes each.
MAX_LENGTHS: Final = 4096


class Rate:
    """Tokens per second, learned from samples that fade. `tps` is None until there was one."""

    __slots__ = ("_seconds", "_tokens", "token_s", "tps")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self.tps: float | None = None
        self.token_s = 0.0  # seconds a token, 0.0 while that is not known

    def add(self, tokens: float, seconds: float) -> None:
        """One measurement: `tokens` took `seconds`."""
        if tokens <= 0 or seconds <= 0:
            return
        self._tokens = self._tokens * FADE + tokens
        self._seconds = self._seconds * FADE + seconds
        self.tps = max(self._tokens / self._seconds, LEAST_TPS)
        self.token_s = 1.0 / self.tps

    def add_reported(self, tps: float | None) -> None:
        """The node's own figure, in tokens per second; None says nothing."""
        if tps:
            self.add(tps * REPORT_WEIGHT_S, REPORT_WEIGHT_S)


class OutputLengths:
    """Expected tokens of an answer, for a model and a key (an average that fades)."""

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str, str], float] = OrderedDict()

    def expected(self, model: str, key_id: str, limit: int | None) -> float:
        """The expected length in tokens, at most the caller's own `limit`."""
        means = self._means
        mean = means.get((model, key_id)) or means.get((model, "")) or PRIOR_OUTPUT_TOKENS
        return mean if limit is None else min(mean, float(limit))

    def add(self, model: str, key_id: str, tokens: int) -> None:
        """An answer of `tokens` ended by itself (one that was cancelled tells nothing)."""
        for name in (key_id, ""):
            mean = self._means.pop((model, name), None)
            self._means[model, name] = (
                float(tokens) if mean is None else mean + OUTPUT_FADE * (tokens - mean)
            )
        while len(self._means) > MAX_LENGTHS:
            self._means.popitem(last=False)
