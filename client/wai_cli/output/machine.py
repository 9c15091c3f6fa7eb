"""A node's machine in the cells of a table: its load over time, its memory, its heat. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .progress import size_text

SHOWN_STEPS: Final = 8  # of 15 s: the last two minutes
_BARS: Final = "▁▂▃▄▅▆▇█"
_NOTHING: Final = ("-", "-", "-")


def machine_cells(row: dict[str, Any] | None) -> tuple[str, str, str]:
    """Return load, memory and heat of a row of the live feed; None: nothing is known."""
    if row is None:
        return _NOTHING
    now = row["now"]
    gpus = now.get("gpus") or ()
    bars = sparkline(row.get("history") or ())
    if now.get("problem") or any(gpu.get("problem") for gpu in gpus):
        return f"GPU fails {bars}", _memory(gpus), _heat(gpus)
    if not gpus:
        size = _of(now.get("ram_used"), now.get("ram_total"))
        return f"CPU {_percent(now.get('cpu'))} {bars}", size, "-"
    uses = [gpu["use"] for gpu in gpus if gpu.get("use") is not None]
    count = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
    return f"{count} {_percent(max(uses, default=None))} {bars}", _memory(gpus), _heat(gpus)


def sparkline(history: Sequence[float | None]) -> str:
    """Return the last steps of a history in percent as bars; a space where nothing was told."""
    return "".join(
        " " if use is None else _BARS[min(len(_BARS) - 1, int(use / 100.0 * len(_BARS)))]
        for use in history[-SHOWN_STEPS:]
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"


def _memory(gpus: Sequence[dict[str, Any]]) -> str:
    used = [gpu["used"] for gpu in gpus if gpu.get("used") is not None]
    total = [gpu["total"] for gpu in gpus if gpu.get("total") is not None]
    return _of(sum(used) if used else None, sum(total) if total else None)


def _of(used: int | None, total: int | None) -> str:
    if not total:
        return "-"
    return f"{'?' if used is None else size_text(used)} of {size_text(total)}"


def _heat(gpus: Sequence[dict[str, Any]]) -> str:
    heat = [gpu["temperature"] for gpu in gpus if gpu.get("temperature") is not None]
    power = [gpu["power"] for gpu in gpus if gpu.get("power") is not None]
    told = ([f"{max(heat):.0f} °C"] if heat else []) + ([f"{sum(power):.0f} W"] if power else [])
    return " ".join(told) or "-"
