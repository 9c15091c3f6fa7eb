"""What was found out of somebody lately: remembered for a while, in bounded number. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_REMEMBERED: Final = 4096
"""Pairs of a node and a model, or of a node and a route."""


class Lately:
    """Remembers pairs of names, each for `for_s` seconds. The oldest is forgotten for a new one."""

    def __init__(self, clock: Callable[[], float], for_s: float) -> None:
        self._clock = clock
        self._for_s = for_s
        self._until: dict[tuple[str, str], float] = {}

    def note(self, name: str, about: str) -> None:
        """It was found out just now."""
        self._until.pop((name, about), None)
        if len(self._until) >= MAX_REMEMBERED:
            del self._until[next(iter(self._until))]
        self._until[name, about] = self._clock() + self._for_s

    def knows(self, name: str, about: str) -> bool:
        """Whether it was found out lately."""
        if not self._until:  # nearly always
            return False
        until = self._until.get((name, about))
        if until is None:
            return False
        if until <= self._clock():
            del self._until[name, about]
            return False
        return True
