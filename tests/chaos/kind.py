"""What a kind of fault is. Each is one class in `kinds/`, and a row of the table there."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from .findings import Findings
from .needs import Need
from .stage import Stage

S = TypeVar("S", bound=Stage)


class Kind(ABC, Generic[S]):
    """A fault that can strike again and again on one stage.

    `promise` is said in the report, and `check` holds it, beyond what holds for every kind: no
    number of a stream is lost, repeated or reordered, and no stream ends before its end.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()

    may_refuse: ClassVar[bool] = False
    """New requests may get a 503: the node is away for longer than requests wait for it."""

    resumes_within_s: ClassVar[float | None] = None
    """From the fault's end to the next number of each stream that was under way, p99."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    @abstractmethod
    def stage(self, folder: Path, callers: int) -> AbstractContextManager[S]:
        """Where it strikes."""

    @abstractmethod
    def apply(self, stage: S, found: Findings) -> None:
        """Strike, and return when it has lasted."""

    @abstractmethod
    def undo(self, stage: S) -> None:
        """Make all good again, however far `apply` came."""

    def check(self, stage: S, found: Findings) -> None:
        """Add to `found.broken` what was promised and is not so, after the callers have ended."""
