"""Callers that request answers without a pause, and record when each number arrived."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Final

from tests.harness.cluster import Cluster
from tests.harness.counted import Counted, count
from tests.harness.processes import wait_until

TIMEOUT_S: Final = 120.0  # longer than a session lives without a connection: the relay speaks first
_AFTER_A_REFUSAL_S: Final = 0.5


@dataclass(slots=True)
class Watched:
    """One request. `arrivals`: the times of its numbers; `answer` is set when it has ended."""

    began_at: float = field(default_factory=time.monotonic)
    arrivals: list[float] = field(default_factory=list)
    answer: Counted | None = None

    def was_flowing_at(self, moment: float) -> bool:
        """Return whether `moment` was after its first number and before its end."""
        begun = bool(self.arrivals) and self.arrivals[0] < moment
        return begun and (self.answer is None or self.answer.ended_at > moment)

    def was_under_way(self, since: float, until: float) -> bool:
        """Return whether it was open at some time between the two moments."""
        return self.began_at < until and (self.answer is None or self.answer.ended_at > since)

    def settled_after(self, moment: float) -> bool:
        """Return whether a number came after `moment`, or it has ended."""
        return self.answer is not None or self.resumed_after_s(moment) is not None

    def resumed_after_s(self, moment: float) -> float | None:
        """Return the seconds from `moment` to the next number; None if none came."""
        later = next((at for at in self.arrivals if at >= moment), None)
        return None if later is None else later - moment


class Callers:
    """`number` threads, each of which requests `numbers` numbers repeatedly until `stop`."""

    def __init__(self, running: Cluster, secret: str, number: int, numbers: int) -> None:
        self._watched: list[Watched] = []
        self._running, self._secret, self._numbers = running, secret, numbers
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(number)]

    def start(self) -> None:
        """Start, and wait until each has an answer in progress."""
        for thread in self._threads:
            thread.start()
        wait_until(
            lambda: sum(bool(one.arrivals) for one in self.seen) >= len(self._threads),
            "the answers do not begin",
        )

    def stop(self) -> None:
        """Send no more requests, and wait for those in progress."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def seen(self) -> list[Watched]:
        """Return all requests so far."""
        return list(self._watched)  # the threads go on adding to it

    def answers(self) -> list[Counted]:
        """Return all answers that have ended."""
        return [one.answer for one in self._watched if one.answer is not None]

    def flowing_at(self, moment: float) -> list[Watched]:
        """Return the requests whose answer was in progress at `moment`."""
        return [one for one in self.seen if one.was_flowing_at(moment)]

    def wait_until_resumed(self, moment: float, timeout_s: float) -> list[float]:
        """Wait until each answer that was in progress at `moment` has its next number or has ended.

        Returns the seconds to the next number, without lost answers.
        """
        flowing = self.flowing_at(moment)
        deadline = time.monotonic() + timeout_s
        while not all(one.settled_after(moment) for one in flowing) and time.monotonic() < deadline:
            time.sleep(0.05)
        found = [one.resumed_after_s(moment) for one in flowing]
        return [seconds for seconds in found if seconds is not None]

    def _call(self) -> None:
        while not self._stop.is_set():
            one = Watched()
            self._watched.append(one)
            one.answer = count(
                self._running,
                self._secret,
                self._numbers,
                on_number=lambda _, one=one: one.arrivals.append(time.monotonic()),  # type: ignore[misc]
                timeout_s=TIMEOUT_S,
            )
            if one.answer.refusal or one.answer.broken:
                self._stop.wait(_AFTER_A_REFUSAL_S)
