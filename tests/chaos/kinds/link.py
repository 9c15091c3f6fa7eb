"""Faults of the network between node and relay: lost connections and outages."""

from __future__ import annotations

import random
import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final

from tests.chaos.findings import Findings
from tests.chaos.kind import Kind
from tests.chaos.stage import LinkStage, Size, link_stage

RESUMES_WITHIN_S: Final = 2.0  # while a session lives its node tries that often
FLAPS_S: Final = 8.0
SHORTEST_FLAP_S: Final = 0.1
LONGEST_FLAP_S: Final = 1.3


class _LinkKind(Kind[LinkStage]):
    """The base class of the link's faults."""

    may_refuse = True
    resumes_within_s = RESUMES_WITHIN_S

    def stage(self, folder: Path, callers: int) -> AbstractContextManager[LinkStage]:
        return link_stage(folder, Size(callers))

    def undo(self, stage: LinkStage) -> None:
        stage.tunnel.listen_again()
        stage.tunnel.clear()


class Flapping(_LinkKind):
    name = "flapping"
    promise = (
        f"connections that live {SHORTEST_FLAP_S} to {LONGEST_FLAP_S} s lose no stream; streams go"
        f" on within {RESUMES_WITHIN_S:g} s of the last cut"
    )

    def apply(self, stage: LinkStage, found: Findings) -> None:
        until = time.monotonic() + FLAPS_S
        while time.monotonic() < until:
            self.dice.choice((stage.tunnel.reset, stage.tunnel.cut))()
            time.sleep(self.dice.uniform(SHORTEST_FLAP_S, LONGEST_FLAP_S))
        stage.tunnel.reset()


def go_away(stage: LinkStage, dice: random.Random, gone_s: float) -> None:
    """Refuse dials or drop all packets, at random, for `gone_s`."""
    dice.choice((stage.tunnel.stop_listening, stage.tunnel.stall))()
    time.sleep(gone_s)


class _Gone(_LinkKind):
    """The base class of outages, in which dials fail at once or get no answer."""

    @abstractmethod
    def gone_s(self) -> float:
        """Return how long the next outage lasts."""

    def apply(self, stage: LinkStage, found: Findings) -> None:
        go_away(stage, self.dice, self.gone_s())


class Outage(_Gone):
    name = "outage"
    promise = f"1 to 50 s without a link lose no stream; it goes on within {RESUMES_WITHIN_S:g} s"

    def gone_s(self) -> float:
        return self.dice.choice((1.0, 5.0, 10.0, 20.0, 30.0, 50.0))


class _FixedOutage(_Gone):
    """An outage of fixed length, so that figures can be compared; dials are refused."""

    lasts_s: ClassVar[float]

    def gone_s(self) -> float:
        return self.lasts_s

    def apply(self, stage: LinkStage, found: Findings) -> None:
        stage.tunnel.stop_listening()
        time.sleep(self.lasts_s)


class Outage20(_FixedOutage):
    name = "outage-20s"
    lasts_s = 20.0
    promise = f"20 s of refused dials lose no stream; it goes on within {RESUMES_WITHIN_S:g} s"


class Outage50(_FixedOutage):
    name = "outage-50s"
    lasts_s = 50.0
    promise = f"50 s of refused dials lose no stream; it goes on within {RESUMES_WITHIN_S:g} s"


class Mixed(_LinkKind):
    """Any of the link's faults, for any time, in any order; for long runs."""

    name = "mixed"
    promise = (
        f"any order of the link's faults loses no stream; within {RESUMES_WITHIN_S:g} s it goes on"
    )
    _longest_s = 15.0

    def apply(self, stage: LinkStage, found: Findings) -> None:
        for _ in range(self.dice.randrange(1, 5)):
            lasts_s = self._longest_s ** self.dice.uniform(-0.5, 1.0)  # mostly short ones
            match self.dice.randrange(6):
                case 0:
                    stage.tunnel.reset_after(self.dice.randrange(1, 20_000))
                case 1:
                    stage.tunnel.cut()
                case 2:
                    stage.tunnel.abandon()
                case 3:
                    stage.tunnel.limit_rate(self.dice.uniform(20e3, 200e3))
                case 4:
                    stage.tunnel.delay(self.dice.uniform(0.02, 0.5))
                case _:
                    go_away(stage, self.dice, 0.0)
            time.sleep(lasts_s)
            self.undo(stage)
        stage.tunnel.reset()
