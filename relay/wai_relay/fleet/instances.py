"""Whether two machines use one node's identity, told from the runs of its program that come in.

Each run makes up an `instance` when it starts (SPEC section 3), so a run that another one has
followed never comes again, unless both run at the same time: on two machines, with one copied data
folder. The one that came first keeps the place, and the copy is refused for as long as the first
has a session. A pure state machine for one node, told the time.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Final

import msgspec

KNOWN_FOR_S: Final = 600.0
"""How long a run that was seen is remembered: a copy that is refused tries again far more often."""

MAX_KNOWN: Final = 16
"""Runs remembered of one node: a program that crashes at once and is restarted has many."""

COPY_RETRY_S: Final = 15.0
"""When a copy may ask again: it has the place that soon after the first machine has left it."""


class InstanceVerdict(enum.Enum):
    """What is to be done with a run that comes in while there are sessions of others."""

    ADMIT = enum.auto()
    ASK = enum.auto()
    """Only if none of the others' connections answers."""
    REFUSE = enum.auto()


class _Run(msgspec.Struct):
    first_at: float
    last_at: float
    copy: bool = False


class Instances:
    """The runs of one node's program that came in lately."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._refused_at: float | None = None
        self._said_at: float | None = None

    def judge(self, instance: str, others: Collection[str], now: float) -> InstanceVerdict:
        """What to do with `instance`, where `others` have sessions now, connected or waiting."""
        for other in self._runs.keys() & set(others):
            self._runs[other].last_at = now
        self._forget(now)
        if not instance or not others:
            return InstanceVerdict.ADMIT
        run = self._runs.get(instance)
        if run is None:
            return InstanceVerdict.ASK
        if run.copy:
            return InstanceVerdict.REFUSE
        return InstanceVerdict.ADMIT  # one that was here before the others: they are the copies

    def admitted(self, instance: str, others: Collection[str], now: float) -> bool:
        """`instance` was let in, and the sessions of `others` end. True: it is found out by this
        that they are copies of it."""
        returned = instance in self._runs and bool(others)
        run = self._runs.setdefault(instance, _Run(now, now))
        run.last_at, run.copy = now, False
        for other in others if returned else ():
            self._runs.setdefault(other, _Run(now, now)).copy = True
        if returned:
            self._refused_at = now
        return returned

    def refused(self, instance: str, now: float) -> bool:
        """`instance` was refused as a copy. True: nothing has been said of it lately."""
        run = self._runs.setdefault(instance, _Run(now, now))
        run.last_at, run.copy = now, True
        self._refused_at = now
        news = self._said_at is None or now - self._said_at >= KNOWN_FOR_S
        if news:
            self._said_at = now
        return news

    def is_copied(self, now: float) -> bool:
        """Whether a copy was found lately."""
        return self._refused_at is not None and now - self._refused_at < KNOWN_FOR_S

    def _forget(self, now: float) -> None:
        """What has not been seen for long; the longest unseen first where there are too many."""
        by_age = sorted(self._runs, key=lambda name: self._runs[name].last_at)
        for name in by_age:
            old = now - self._runs[name].last_at >= KNOWN_FOR_S or len(self._runs) > MAX_KNOWN
            if old:
                del self._runs[name]
