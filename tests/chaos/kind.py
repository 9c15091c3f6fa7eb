"""The base class of the kinds of faults. Each kind is a class in `kinds/` and in its table."""

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
    """A kind of fault that can be injected repeatedly on one stage.

    `promise` is printed in the report, and `check` checks it. For every kind it is promised that no
    number of a stream is lost, repeated or reordered, and that no stream ends early.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()

    may_refuse: ClassVar[bool] = False
    """New requests may get a 503: the node is away for longer than requests wait for it."""

    resumes_within_s: ClassVar[float | None] = None
    """Promised p99 of the time from the fault's end to the next number of each open stream."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    @abstractmethod
    def stage(self, folder: Path, callers: int) -> AbstractContextManager[S]:
        """Return the processes into which the fault is injected."""

    @abstractmethod
    def apply(self, stage: S, found: Findings) -> None:
        """Inject the fault, and return when it has lasted."""

    @abstractmethod
    def undo(self, stage: S) -> None:
        """Remove the fault, however far `apply` came."""

    def check(self, stage: S, found: Findings) -> None:
        """Add broken promises to `found.broken`, after the callers have ended."""
