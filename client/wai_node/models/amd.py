"""What AMD's GPUs do now, by the kernel's sysfs. Nothing is raised."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .gauges import MAX_GPUS, GpuGauges

_VENDOR: Final = "0x1002"
_MAX_CHARS: Final = 64  # of a file with one number


def read_amd(drm: Path) -> list[GpuGauges]:
    """Return every card below `drm` whose memory is told."""
    try:
        cards = sorted(drm.glob("card[0-9]*/device"))
    except OSError:
        return []
    found: list[GpuGauges] = []
    for device in cards:
        if _text(device / "vendor") != _VENDOR or len(found) >= MAX_GPUS:
            continue
        total = _number(device / "mem_info_vram_total")
        if total is None:
            continue
        sensors = next(iter(_sensors(device)), device)
        power = _number(sensors / "power1_average")
        if power is None:
            power = _number(sensors / "power1_input")  # newer cards have this one
        limit = _number(sensors / "power1_cap")
        heat = _number(sensors / "temp1_input")
        use = _number(device / "gpu_busy_percent")
        used = _number(device / "mem_info_vram_used")
        found.append(
            GpuGauges(
                name=_text(device / "product_name") or "AMD GPU",
                use=None if use is None else float(use),
                used_bytes=None if used is None else int(used),
                total_bytes=int(total),
                temperature_c=None if heat is None else heat / 1000.0,
                power_w=None if power is None else power / 1e6,
                power_limit_w=None if limit is None else limit / 1e6,
            )
        )
    return found


def _sensors(device: Path) -> list[Path]:
    try:
        return sorted((device / "hwmon").glob("hwmon*"))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_CHARS).decode("utf-8", "replace").strip()
    except OSError:  # a card that sleeps, or has no such sensor
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(int(_text(path)))
    except ValueError:
        return None
