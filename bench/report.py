"""The results of a run: stored as JSON, printed as tables with the ratios last."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.scenarios import DIRECT, HAPROXY, OURS, Scenario
from bench.summary import Figures, median_figures

# What a path adds is its figure minus that of the direct path in the same round.
_ADDED: Final = ("event_p50_ms", "event_p99_ms", "first_p50_ms", "first_p99_ms")
_NAMES: Final = {
    "cpu_us_per_event": "µs CPU/event",
    "cpu_ms_per_request": "ms CPU/request",
    "cpu_s_per_gib": "CPU-s/GiB",
    "kib_per_stream": "KiB/stream",
    "events_per_s": "events/s",
    "requests_per_s": "requests/s",
    "mb_per_s": "MB/s",
}


@dataclass(slots=True)
class Report:
    """Figures by scenario, path and round; `notes` say what was left out, and why."""

    rounds: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    ours: Figures = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, scenario: str, path: str, figures: Figures) -> None:
        """Store one measurement, and compute what it adds to the direct path."""
        paths = self.rounds.setdefault(scenario, {})
        done = paths.setdefault(path, [])
        direct = paths.get(DIRECT, [])
        if path != DIRECT and len(direct) > len(done):
            base = direct[len(done)]
            for name in _ADDED:
                if name in figures and name in base:
                    figures[f"added_{name}"] = figures[name] - base[name]
        done.append(figures)

    def median(self, scenario: str, path: str) -> Figures:
        """Return the medians of one cell; empty if it was not measured."""
        return median_figures(self.rounds.get(scenario, {}).get(path, []))

    def ratio(self, scenario: str, path: str, base: str, figure: str) -> float | None:
        """Return the median of the ratios `path` / `base` of each round."""
        paths = self.rounds.get(scenario, {})
        pairs = zip(paths.get(path, []), paths.get(base, []), strict=False)
        ratios = [{"r": a[figure] / b[figure]} for a, b in pairs if a.get(figure) and b.get(figure)]
        return median_figures(ratios).get("r")

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "machine": self.machine,
            "notes": self.notes,
            "ours": self.ours,
            "rounds": self.rounds,
        }
        path.write_text(json.dumps(kept, indent=1) + "\n")


def read_report(path: Path) -> Report:
    """A report as `save` wrote it."""
    return Report(**json.loads(path.read_text()))


def table(report: Report, scenario: Scenario) -> str:
    """One scenario's table: a line per path, then ours against each other path."""
    paths = report.rounds.get(scenario.name, {})
    if not paths:
        return ""
    columns = [added_name(report, scenario, name) for name in scenario.shown]
    lines = [["", *(_NAMES.get(name, _spoken(name)) for name in columns)]]
    for path in paths:
        figures = report.median(scenario.name, path)
        lines.append([path, *(number(figures.get(name)) for name in columns)])
    text = f"\n{scenario.title}\n{aligned(lines)}"
    parts = _parts(report.median(scenario.name, OURS), scenario.shown[0])
    if parts:
        text += f"  {OURS}: {parts}\n"
    key = scenario.shown[0]
    ratios = {
        path: report.ratio(scenario.name, OURS, path, key)
        for path in paths
        if path not in (OURS, DIRECT)
    }
    told = [f"{ratio:.2f} × {path}" for path, ratio in ratios.items() if ratio is not None]
    if told:
        text += f"  {OURS} / others ({_NAMES.get(key, _spoken(key))}): {', '.join(told)}\n"
    return text


def added_name(report: Report, scenario: Scenario, name: str) -> str:
    """The figure's `added_…` form where there is one: what counts is what a path adds."""
    added = f"added_{name}"
    return added if added in report.median(scenario.name, OURS) else name


def _parts(figures: Figures, key: str) -> str:
    """The figure's share of each process."""
    shares = {n.removeprefix(f"{key}_"): v for n, v in figures.items() if n.startswith(f"{key}_")}
    return ", ".join(f"{name} {number(value)}" for name, value in shares.items())


def _spoken(name: str) -> str:
    """`added_event_p50_ms` → `added event p50 ms`."""
    return name.replace("_", " ")


def number(value: float | None) -> str:
    """Format a number with three digits; a dash for what was not measured."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def aligned(lines: list[list[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    text = ""
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text += "  " + "  ".join(cells).rstrip() + "\n"
    return text


def haproxy_measured(report: Report) -> bool:
    """Return whether there is another path to compare ours with."""
    return HAPROXY in report.rounds.get("sse-200", {})
