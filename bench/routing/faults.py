"""How a simulated node fails its requests: at once, after a silence, or for a while."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Faults:
    """`at_once`: the share of requests that it fails at once. `late`: the share that it fails after
    it was silent for a time within `silence_s`, in which each holds a slot. For the last `down_s`
    of each `every_s` it fails all that come, after such a silence; what it has begun it ends."""

    at_once: float = 0.0
    late: float = 0.0
    silence_s: tuple[float, float] = (5.0, 20.0)
    every_s: float = 0.0
    down_s: float = 0.0

    def silence(self, now: float, rng: random.Random) -> float | None:
        """How long it is silent before it fails a request that comes now, 0.0 if it fails it at
        once; None: it serves it."""
        if self.at_once and rng.random() < self.at_once:
            return 0.0
        down = self.every_s > 0.0 and now % self.every_s >= self.every_s - self.down_s
        if down or (self.late and rng.random() < self.late):
            return rng.uniform(*self.silence_s)
        return None

    @property
    def up(self) -> float:
        """The share of the time in which it serves."""
        return 1.0 - self.down_s / self.every_s if self.every_s else 1.0


NO_FAULTS: Final = Faults()
