"""How long a node needs for one token of an answer, as a line over the other answers in progress.

Batching servers write for all answers at once, and each further answer makes a step longer. So the
seconds per token are taken as `alone_s + each_s * others`, fitted by least squares whose samples
fade. With few samples, or with samples for one load only, the slope is mostly an assumption.
"""

from __future__ import annotations

from typing import Final

# A sample's weight is halved after about 35 further ones: the load of a minute or two.
FADE: Final = 0.98
# How much slower a step is on a full node than alone, until it was measured: with eight slots each
# answer makes it 5 % longer, between vLLM on a data-centre GPU (2 %) and llama.cpp on a laptop
# (25 %). Nodes with more slots are made for more at once.
ASSUMED_WHEN_FULL: Final = 0.4
# No server is free of crowding. It also keeps equal nodes equally loaded where measured speeds
# differ by noise: of eight slots, a node that seems 2 % slower gets half a request less.
LEAST_WHEN_FULL: Final = 0.16
ASSUMED_SLOTS: Final = 8  # where they are not told
# The assumption counts like samples with this much spread (in answers, squared).
ASSUMED_SPREAD: Final = 2.0
# Alone a node needs at least this share of its mean time: else noise in the slope would make an
# idle node infinitely fast.
LEAST_ALONE: Final = 0.05
# One sample moves the line by at most this factor: an answer that stalled is no new speed, and
# several in a row are.
LARGEST_JUMP: Final = 3.0
TRUSTED_SAMPLES: Final = 3.0
# A node's own figure counts like half a sample, for an answer alone.
REPORT_WEIGHT: Final = 0.5
# Until anything is known of any node: a small model on a plain GPU.
PRIOR_ALONE_S: Final = 1 / 30


class Pace:
    """Seconds per token, learned. `alone_s` is 0.0 while nothing is known."""

    __slots__ = (
        *("_mean_others", "_mean_s", "_spread", "_together", "_weight"),
        *("alone_s", "each_s", "slots"),
    )

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots or ASSUMED_SLOTS
        self._weight = 0.0
        self._mean_others = 0.0
        self._mean_s = 0.0
        self._spread = 0.0  # sum of squared deviations of `others`
        self._together = 0.0  # sum of the products of both deviations
        self.alone_s = 0.0
        self.each_s = 0.0

    def assumed_each_s(self, alone_s: float) -> float:
        """How much each further answer is assumed to slow a step of `alone_s`."""
        return alone_s * ASSUMED_WHEN_FULL / self.slots

    def at(self, others: float) -> float:
        """Seconds per token beside `others` answers."""
        return self.alone_s + self.each_s * others

    def add(self, others: float, token_s: float, weight: float = 1.0) -> None:
        """One answer took `token_s` seconds per token beside `others` others on average."""
        if token_s <= 0.0 or others < 0.0:
            return
        if self._weight >= TRUSTED_SAMPLES:
            expected_s = self.at(others)
            token_s = min(max(token_s, expected_s / LARGEST_JUMP), expected_s * LARGEST_JUMP)
        self._weight = self._weight * FADE + weight
        share = weight / self._weight
        off_others, off_s = others - self._mean_others, token_s - self._mean_s
        self._mean_others += share * off_others
        self._mean_s += share * off_s
        left = weight * (1.0 - share)
        self._spread = self._spread * FADE + left * off_others * off_others
        self._together = self._together * FADE + left * off_others * off_s
        self._fit()

    def add_reported(self, tps: float | None) -> None:
        """The node's own figure, in tokens per second; None says nothing."""
        if tps:
            self.add(0.0, 1.0 / tps, REPORT_WEIGHT)

    def _fit(self) -> None:
        mean_s, mean_others = self._mean_s, self._mean_others
        assumed = ASSUMED_WHEN_FULL * mean_s / (self.slots + ASSUMED_WHEN_FULL * mean_others)
        least = LEAST_WHEN_FULL * mean_s / (self.slots + LEAST_WHEN_FULL * mean_others)
        slope = (self._together + ASSUMED_SPREAD * assumed) / (self._spread + ASSUMED_SPREAD)
        if mean_others > 0.0:
            slope = min(slope, (1.0 - LEAST_ALONE) * mean_s / mean_others)
        self.each_s = max(slope, least)
        self.alone_s = mean_s - self.each_s * mean_others
