"""How busy a machine is at one moment: plain values, bounded for the way to the relay."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

MAX_GPUS: Final = 16  # of one machine; more are not told
MAX_PROCESSES: Final = 16
MAX_NAME_CHARS: Final = 80
MAX_PROBLEM_CHARS: Final = 200
MAX_BYTES: Final = 1 << 50


class GpuGauges(msgspec.Struct, frozen=True):
    """One GPU; None is what its driver does not tell. `use`: percent of the time that it works.
    `problem`: why it tells nothing."""

    name: str
    use: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    problem: str = ""


class ProcessGauges(msgspec.Struct, frozen=True):
    """The server of one deployed model. `gpu_bytes`: None where the driver does not tell."""

    model: str
    ram_bytes: int
    gpu_bytes: int | None = None


class Gauges(msgspec.Struct, frozen=True):
    """A machine at one moment. `cpu`: percent of all cores together, None on the first look."""

    cpu: float | None
    ram_used_bytes: int
    ram_total_bytes: int
    gpus: tuple[GpuGauges, ...] = ()
    processes: tuple[ProcessGauges, ...] = ()
    problem: str = ""

    def to_wire(self) -> dict[str, Any]:
        """Return the value of the EVENT `hardware` (SPEC section 6)."""
        return {
            "cpu": _within(self.cpu, 100.0),
            "ram_used": _bytes(self.ram_used_bytes),
            "ram_total": _bytes(self.ram_total_bytes),
            "problem": self.problem[:MAX_PROBLEM_CHARS],
            "gpus": [
                {
                    "name": gpu.name[:MAX_NAME_CHARS],
                    "use": _within(gpu.use, 100.0),
                    "used": _bytes(gpu.used_bytes),
                    "total": _bytes(gpu.total_bytes),
                    "temperature": _within(gpu.temperature_c, 1000.0),
                    "power": _within(gpu.power_w, 1e5),
                    "power_limit": _within(gpu.power_limit_w, 1e5),
                    "problem": gpu.problem[:MAX_PROBLEM_CHARS],
                }
                for gpu in self.gpus[:MAX_GPUS]
            ],
            "processes": [
                {
                    "model": process.model,
                    "ram": _bytes(process.ram_bytes),
                    "gpu": _bytes(process.gpu_bytes),
                }
                for process in self.processes[:MAX_PROCESSES]
            ],
        }


def _within(value: float | None, most: float) -> float | None:
    """A figure with one decimal; None for what no sensor can mean (0xFFFFFFFF, NaN)."""
    if value is None or not math.isfinite(value) or not 0 <= value <= most:
        return None
    return round(value, 1)


def _bytes(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MAX_BYTES else None
