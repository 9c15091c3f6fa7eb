"""Statistics: percentiles of a sample, medians over repetitions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

Figures = dict[str, float]
"""The result of one measurement: name of a figure (ending with its unit) → value."""


def percentile(sorted_values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of `sorted_values` lie, interpolated; nan without any."""
    if not sorted_values:
        return float("nan")
    place = (len(sorted_values) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(sorted_values) - 1)
    return sorted_values[below] + (sorted_values[above] - sorted_values[below]) * (place - below)


def spread_ms(name: str, values_ns: list[int]) -> Figures:
    """`{name}_p50_ms` and `{name}_p99_ms` of nanoseconds."""
    values_ns.sort()
    return {
        f"{name}_p50_ms": percentile(values_ns, 50) / 1e6,
        f"{name}_p99_ms": percentile(values_ns, 99) / 1e6,
    }


def median_figures(runs: Iterable[Figures]) -> Figures:
    """The median of each figure over the runs that have it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            values.setdefault(name, []).append(value)
    return {name: statistics.median(found) for name, found in values.items()}
