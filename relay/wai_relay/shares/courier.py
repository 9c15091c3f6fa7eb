"""Carries what `SharedAdmission` asks to the judge, and the answers back.

One message at a time, with all that is to be asked by then: while one is on its way the next
fills up. Without anything to ask there is one every `BEAT_S`, which renews the lease. When no
answer comes the message is said again, after a growing pause; requests that have waited too long
are refused meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from wai_relay.contracts.records import LimitsState
from wai_relay.policy.grants import BEAT_S
from wai_relay.policy.shared_admission import SharedAdmission

from .judge import Judge, says_that_it_is_down

FIRST_PAUSE_S: Final = 0.1  # a connection that was cut is made anew in milliseconds
MOST_PAUSE_S: Final = 1.0
SWEEP_S: Final = 0.25  # how late a request that has waited too long may be refused
TIDY_S: Final = 60.0
LAST_WORDS_S: Final = 2.0  # to give back what is held when the relay ends

_log = logging.getLogger("wai.limits")


class Courier:
    """`start` it; `close` it before the store. Belongs to one loop.

    `one_host`: whether there is only one place where the database can be; else its being away from
    there does not say that no other relay has it.
    """

    def __init__(
        self,
        admission: SharedAdmission,
        judge: Judge,
        *,
        one_host: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._one_host = one_host
        self._away_since: float | None = None
        self._admission = admission
        self._judge = judge
        self._clock = clock
        self._wall_clock = wall_clock
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._beat_at = self._tidy_at = clock()
        admission.wake = self._wake

    @property
    def state(self) -> LimitsState:
        """What was asked, and whether it is answered."""
        admission = self._admission
        return LimitsState(
            here=admission.granted_here,
            there=admission.granted_there,
            refused=admission.refused_there,
            unanswered=admission.unanswered,
            round_trips=self._judge.round_trips,
            away_since=self._away_since,
        )

    def start(self) -> None:
        """Begin to carry."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Give back what is held, and carry no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
            if self._away_since is None:
                await self._give_all_back()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._admission.give_up(self._clock(), everything=True)
        self._judge.close()

    async def _give_all_back(self) -> None:
        self._admission.keep_nothing()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                while self._admission.has_something_to_ask:
                    await self._exchange(beat=False)
        except Exception as error:
            _log.warning("what this relay holds of limits comes back by itself: %s", error)

    def _wake(self) -> None:
        self._something.set()
        if self._sweep is None and self._admission.waiting:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._on_sweep)

    def _on_sweep(self) -> None:
        self._sweep = None
        self._admission.give_up(self._clock())
        self._wake()

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._wait()
                await self._exchange(beat=self._clock() >= self._beat_at)
                if self._clock() >= self._tidy_at:
                    self._tidy_at = self._clock() + TIDY_S
                    await self._judge.tidy()
            except Exception as error:
                self._failed(error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MOST_PAUSE_S)
            else:
                pause_s = FIRST_PAUSE_S

    async def _wait(self) -> None:
        """Return when there is something to ask, or it is time for a beat."""
        self._something.clear()
        if self._admission.has_something_to_ask:
            await asyncio.sleep(0)  # those that run in this turn of the loop may ask too
            return
        remaining_s = self._beat_at - self._clock()
        if remaining_s > 0:
            # Not `wait_for`: until Python 3.12 it may swallow a cancelling.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining_s):
                    await self._something.wait()

    async def _exchange(self, *, beat: bool) -> None:
        admission = self._admission
        await self._judge.ready()  # requests that wait for this are not asked for yet
        sent_at = self._clock()
        if beat:
            self._beat_at = sent_at + BEAT_S
            admission.beat(sent_at)
        asks = admission.asks(sent_at)
        try:
            reply = await self._judge.exchange(asks, beat=beat)
        except BaseException:
            admission.unheard(asks)
            raise
        admission.hear(asks, reply, sent_at, self._clock(), self._wall_clock())
        if self._away_since is not None:
            _log.info("the limits that all relays keep together are kept again")
            self._away_since = None

    def _failed(self, error: Exception) -> None:
        self._admission.database_down = self._one_host and says_that_it_is_down(error)
        self._beat_at = self._clock()
        if self._away_since is None:
            self._away_since = self._wall_clock()
            _log.warning(
                "the database does not answer for limits: %s", str(error) or type(error).__name__
            )
