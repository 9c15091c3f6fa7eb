"""What NVIDIA's GPUs do now, by NVIDIA's management library, which stays open between two looks.

Each figure is asked for by itself: laptops, virtual GPUs and old cards lack some, others need a
right that this user has not, and a card that fell off its bus has none. Nothing is raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from .gauges import MAX_GPUS, GpuGauges

log = logging.getLogger("wai.node.models")

_T = TypeVar("_T")

AGAIN_S: Final = 60.0  # a driver that does not answer is asked again after so long
LOST: Final = "it is lost: the driver can't reach it any more; reboot the machine"
MISMATCH: Final = (
    "NVIDIA's driver was updated while the old one runs: reboot the machine, or no model will load"
    " on its GPUs"
)
_LISTINGS: Final = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
)


class Nvidia:
    """The GPUs of this machine. Not for two threads at once; `close` it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._nvml: Any = None
        self._again_at = 0.0
        self.problem = ""
        """What is wrong with the driver, "" if nothing, or if there is none."""

    def read(self, ours: Iterable[int]) -> tuple[list[GpuGauges], dict[int, int]]:
        """Every card, and the GPU memory of our processes by their ids, as far as it is told."""
        nvml = self._open()
        if nvml is None:
            return [], {}
        mine = set(ours)
        memory: dict[int, int] = {}
        try:
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            self._lose(error)
            return [], {}
        cards = [self._card(nvml, index, mine, memory) for index in range(min(count, MAX_GPUS))]
        return cards, memory

    def close(self) -> None:
        """Close the library."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                log.debug("NVIDIA's library does not close: %s", error)

    def _open(self) -> Any:
        """The library, opened; None where there is none, or it did not answer lately."""
        if self._nvml is not None or self._now() < self._again_at:
            return self._nvml
        try:
            import pynvml
        except ImportError:
            self._again_at = float("inf")
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._again_at = self._now() + AGAIN_S
            mismatch = getattr(pynvml, "NVML_ERROR_LIB_RM_VERSION_MISMATCH", None)
            wrong = getattr(error, "value", None) == mismatch
            self.problem = MISMATCH if wrong else ""
            log.debug("NVIDIA's driver does not answer: %s", error)
            return None
        self.problem = ""
        self._nvml = pynvml
        return pynvml

    def _lose(self, error: Exception) -> None:
        log.debug("NVIDIA's driver does not answer any more: %s", error)
        self.close()
        self._again_at = self._now() + AGAIN_S

    def _card(self, nvml: Any, index: int, mine: set[int], memory: dict[int, int]) -> GpuGauges:
        lost = False

        def ask(question: Callable[[], _T]) -> _T | None:
            nonlocal lost
            if lost:
                return None
            try:
                return question()
            except nvml.NVMLError as error:
                lost = getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST
                return None
            except (AttributeError, TypeError, ValueError, OSError) as error:
                log.debug("NVIDIA's library answers something else than it should: %s", error)
                return None

        handle = ask(lambda: nvml.nvmlDeviceGetHandleByIndex(index))
        if handle is None:
            return GpuGauges(f"NVIDIA GPU {index}", problem=LOST if lost else "it does not answer")
        name = ask(lambda: nvml.nvmlDeviceGetName(handle))
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
        room = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        use = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        heat = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        power = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        limit = ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        for process in self._processes(nvml, handle, ask):
            used = getattr(process, "usedGpuMemory", None)
            if process.pid in mine and isinstance(used, int):
                memory[process.pid] = memory.get(process.pid, 0) + used
        return GpuGauges(
            name=text or f"NVIDIA GPU {index}",
            use=None if use is None else float(use.gpu),
            used_bytes=None if room is None else int(room.used),
            total_bytes=None if room is None else int(room.total),
            temperature_c=None if heat is None else float(heat),
            power_w=None if power is None else power / 1000.0,
            power_limit_w=None if limit is None else limit / 1000.0,
            problem=LOST if lost else "",
        )

    @staticmethod
    def _processes(nvml: Any, handle: Any, ask: Callable[[Callable[[], Any]], Any]) -> list[Any]:
        """The card's processes, each once: those of Vulkan count as graphics, or as both."""
        found: dict[int, Any] = {}
        for listing in _LISTINGS:
            for process in ask(partial(_call, nvml, listing, handle)) or ():
                found[process.pid] = process
        return list(found.values())


def _call(nvml: Any, name: str, handle: Any) -> Any:
    return getattr(nvml, name)(handle)
