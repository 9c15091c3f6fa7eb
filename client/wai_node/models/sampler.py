"""Look at the machine from time to time, and tell: once a second while somebody looks, else rarely.

A look takes some milliseconds in a thread of its own. A driver that hangs holds that thread alone:
no second look begins before the first has ended, and what hangs is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from wai_protocol.errors import RequestError

from .amd import read_amd
from .cgroup import ROOT
from .gauges import MAX_PROCESSES, Gauges, ProcessGauges
from .hardware import DRM_FOLDER, memory_now
from .nvidia import Nvidia

EVENT: Final = "hardware"
QUICK_S: Final = 1.0  # between two looks while somebody looks
SLOW_S: Final = 15.0
MAX_WATCH_S: Final = 60.0  # what one asking is good for; the relay asks again before
HANG_S: Final = 5.0  # a look takes milliseconds, a second after a long sleep

HANGS: Final = "the graphics driver does not answer; if that stays so, reboot the machine"

Processes = Callable[[], Mapping[int, str]]


def watch_seconds(params: Mapping[str, Any]) -> float:
    """For how long a CALL `hardware.watch` asks. Raises `RequestError`."""
    seconds = params.get("seconds")
    if not isinstance(seconds, int | float) or not 0 <= seconds <= 1e6:
        raise RequestError("hardware.watch: `seconds` is a number, 0 or more")
    return float(seconds)


class Looker:
    """Reads the machine. Blocks; not for two threads at once. Tests replace the folders."""

    def __init__(
        self, drm: Path = DRM_FOLDER, root: Path = ROOT, nvidia: Nvidia | None = None
    ) -> None:
        self._drm, self._root = drm, root
        self._nvidia = nvidia or Nvidia()
        self._cpu: tuple[float, float] | None = None

    def read(self, processes: Mapping[int, str]) -> Gauges:
        """Look. `processes`: the models of our servers by process id."""
        total, available = memory_now(self._root)
        cards, on_gpus = self._nvidia.read(processes)
        seen = []
        for pid, model in list(processes.items())[:MAX_PROCESSES]:
            with contextlib.suppress(psutil.Error):  # it has just ended
                ram = psutil.Process(pid).memory_info().rss
                seen.append(ProcessGauges(model, ram, on_gpus.get(pid)))
        return Gauges(
            cpu=self._cpu_use(),
            ram_used_bytes=max(0, total - available),
            ram_total_bytes=total,
            gpus=(*cards, *read_amd(self._drm)),
            processes=tuple(seen),
            problem=self._nvidia.problem,
        )

    def _cpu_use(self) -> float | None:
        """Percent of all cores' time since the last look."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        now, before = (sum(times[:8]), idle), self._cpu
        self._cpu = now
        if before is None or now[0] <= before[0]:
            return None
        return max(0.0, 100.0 * (1.0 - (now[1] - before[1]) / (now[0] - before[0])))


class Sampler:
    """Tells how busy the machine is by `tell`, while `wanted` says that somebody may hear it.

    `run` it; `watch` makes it quick for a while. `clock` is replaced in tests.
    """

    def __init__(
        self,
        looker: Looker,
        processes: Processes,
        tell: Callable[[str, Any], None],
        *,
        wanted: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        hang_s: float = HANG_S,
    ) -> None:
        self._looker, self._processes, self._tell = looker, processes, tell
        self._wanted, self._clock, self._hang_s = wanted, clock, hang_s
        self._quick_until = 0.0
        self._looked_at = float("-inf")
        self._hurry = asyncio.Event()

    def watch(self, seconds: float) -> None:
        """Somebody looks: be quick for so long, `MAX_WATCH_S` at most."""
        self._quick_until = self._clock() + min(max(0.0, seconds), MAX_WATCH_S)
        self._hurry.set()

    def wait_s(self) -> float:
        """How long until the next look is due; never less than `QUICK_S` after the last one."""
        now = self._clock()
        every = QUICK_S if now < self._quick_until else SLOW_S
        return max(0.0, self._looked_at + every - now)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._pause()
            self._looked_at = self._clock()
            if self._wanted():
                await self._look()

    async def _look(self) -> None:
        look = _in_thread(partial(self._looker.read, self._processes()))
        while True:
            try:
                async with asyncio.timeout(self._hang_s):
                    gauges = await asyncio.shield(look)
            except TimeoutError:
                gauges = Gauges(None, 0, 0, problem=HANGS)
            self._tell(EVENT, gauges.to_wire())
            if look.done():
                return

    async def _pause(self) -> None:
        while (wait_s := self.wait_s()) > 0:
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._hurry.wait()


def _in_thread(work: Callable[[], Gauges]) -> asyncio.Future[Gauges]:
    """Do `work` in a thread that nobody waits for at the end of the process, if it hangs."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Gauges] = loop.create_future()

    def settle(gauges: Gauges | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if gauges is not None:
            done.set_result(gauges)
        else:
            done.set_exception(error or RuntimeError("nothing was read"))

    def run() -> None:
        gauges, failure = None, None
        try:
            gauges = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, gauges, failure)

    threading.Thread(target=run, name="hardware", daemon=True).start()
    return done
