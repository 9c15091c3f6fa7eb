"""Faults that lose, delay, reorder or throttle the packets of the node's link."""

from __future__ import annotations

import random
import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tests.chaos.findings import Findings, spread
from tests.chaos.kind import Kind
from tests.chaos.needs import Need
from tests.chaos.stage import PacketStage, Size, packet_stage
from tests.harness.caller import chat, request
from tests.harness.counting_upstream import MODEL, words
from tests.harness.packet_link import GOOD, Weather

LASTS_S: Final = 10.0
NUMBERS: Final = 400  # of a stream: it outlasts the weather
LARGE_NUMBERS: Final = 350_000  # of an answer in one piece: about 2 MB
LARGE_WITHIN_S: Final = 6.0  # at 300 ms; TCP alone takes 2.9 s after such a change
ANSWERS_WITHIN_S: Final = 30.0
LONG_TEXT: Final = words(0, 2000)  # 9 kB: more than one packet
HOLES: Final = (1300, 1280)  # bytes: of a VPN, and the least that IPv6 demands
NARROW_BYTES: Final = 1000


class _PacketKind(Kind[PacketStage]):
    """The base class of the faults of packets."""

    needs = (Need.NAMESPACES, Need.TUN)

    @abstractmethod
    def weather(self) -> Weather:
        """Return the next fault of packets."""

    def stage(self, folder: Path, callers: int) -> AbstractContextManager[PacketStage]:
        return packet_stage(folder, Size(callers, NUMBERS), self.dice, node_inside=True)

    def apply(self, stage: PacketStage, found: Findings) -> None:
        stage.link.weather = self.weather()
        time.sleep(LASTS_S)

    def undo(self, stage: PacketStage) -> None:
        stage.link.weather = GOOD

    def check(self, stage: PacketStage, found: Findings) -> None:
        link = stage.link
        found.notes.append(f"packets: {link.passed} passed, {link.dropped} dropped")


class Loss(_PacketKind):
    name = "loss"
    promise = "1 to 5 % of the packets lost, each way, lose no stream"

    def weather(self) -> Weather:
        return Weather(loss=self.dice.uniform(0.01, 0.05), delay_s=0.01)


class Delay(_PacketKind):
    name = "delay"
    promise = "20 to 300 ms of delay each way, with jitter, lose no stream"

    def weather(self) -> Weather:
        return Weather(delay_s=self.dice.uniform(0.02, 0.3), jitter_s=0.03)


class Reorder(_PacketKind):
    name = "reorder"
    promise = "packets that overtake each other lose no stream and reorder no number"

    def weather(self) -> Weather:
        return Weather(delay_s=0.01, reordered=self.dice.uniform(0.02, 0.2))


class LowRate(_PacketKind):
    name = "rate"
    promise = "a link of 10 to 60 kB/s, which drops what its queue can't hold, loses no stream"

    def weather(self) -> Weather:
        return Weather(delay_s=0.02, bytes_per_s=self.dice.uniform(10e3, 60e3))


class DelayGrows(_PacketKind):
    """The round trip becomes long after the session has measured a very short one."""

    name = "delay-grows"
    promise = (
        f"no stream is lost when the round trip grows to 300 ms; 2 MB then take at most"
        f" {LARGE_WITHIN_S:g} s"
    )

    def __init__(self, dice: random.Random) -> None:
        super().__init__(dice)
        self._before_s: list[float] = []
        self._after_s: list[float] = []

    def weather(self) -> Weather:
        return Weather(delay_s=0.15)

    def apply(self, stage: PacketStage, found: Findings) -> None:
        before_s = _fetch_large(stage)
        stage.link.weather = self.weather()
        after_s = _fetch_large(stage)
        self._before_s.append(before_s)
        self._after_s.append(after_s)
        if after_s > LARGE_WITHIN_S:
            found.broken.append(f"2 MB took {after_s:.1f} s after the change")

    def check(self, stage: PacketStage, found: Findings) -> None:
        super().check(stage, found)
        found.notes.append(f"2 MB before the change: {spread(self._before_s)}")
        found.notes.append(f"2 MB after it: {spread(self._after_s)}")


def _fetch_large(stage: PacketStage) -> float:
    """Seconds for one answer of about 2 MB."""
    began_at = time.monotonic()
    headers = {"Authorization": f"Bearer {stage.key.secret}"}
    body = chat(MODEL, max_tokens=LARGE_NUMBERS)
    with request(stage.running, "/v1/chat/completions", body, headers) as answer:
        size = len(answer.read())
    if answer.status != 200 or size < LARGE_NUMBERS:
        raise AssertionError(f"the large answer was {answer.status} with {size} bytes")
    return time.monotonic() - began_at


class BlackHole(_PacketKind):
    """A tunnel with a smaller MTU on the way, whose ICMP messages are filtered."""

    name = "black-hole"
    promise = (
        f"when packets over {HOLES[0]} or {HOLES[1]} bytes vanish, a request of 9 kB is answered"
        f" within {ANSWERS_WITHIN_S:g} s, and no stream is lost"
    )
    may_refuse = True

    def __init__(self, dice: random.Random) -> None:
        super().__init__(dice)
        self._took_s: list[float] = []

    def weather(self) -> Weather:
        return Weather(delay_s=0.01, largest_bytes=self.dice.choice(HOLES))

    def apply(self, stage: PacketStage, found: Findings) -> None:
        stage.link.weather = self.weather()
        began_at = time.monotonic()
        headers = {"Authorization": f"Bearer {stage.key.secret}"}
        body = chat(MODEL, user=LONG_TEXT)
        try:
            with request(
                stage.running, "/v1/chat/completions", body, headers, timeout_s=ANSWERS_WITHIN_S
            ) as answer:
                answer.read()
                said = f"answered with {answer.status}"
                good = answer.status == 200
        except TimeoutError:
            said, good = "not answered", False
        self._took_s.append(time.monotonic() - began_at)
        if not good:
            found.broken.append(f"a request of 9 kB was {said}")

    def check(self, stage: PacketStage, found: Findings) -> None:
        super().check(stage, found)
        found.notes.append(f"a request of 9 kB took: {spread(self._took_s)}")


class NarrowBlackHole(BlackHole):
    name = "black-hole-1000"
    promise = f"the same of packets over {NARROW_BYTES} bytes, which is less than IPv6 demands"

    def weather(self) -> Weather:
        return Weather(delay_s=0.01, largest_bytes=NARROW_BYTES)
