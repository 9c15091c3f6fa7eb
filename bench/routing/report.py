"""The results as JSON, as a table in Markdown, and as a plot in SVG."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bench.routing.losses import BOUND, DIGITS, OURS, Row, verdict

COLOURS: Final = (
    *("#999999", "#c49c94", "#8c564b", "#e377c2", "#1f77b4"),
    *("#17becf", "#bcbd22", "#9467bd", "#2ca02c", "#98df8a", "#ff9896", "#ff7f0e"),
    *("#d62728", "#000000"),
)
PANEL_W: Final = 300
PANEL_H: Final = 190
MARGIN: Final = 46


def write(rows: list[Row], folder: Path, note: str) -> None:
    """`routing.json`, `routing.md` and `routing.svg` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"note": note, "rows": [asdict(row) for row in rows]}
    (folder / "routing.json").write_text(json.dumps(_rounded(data), separators=(",", ":")) + "\n")
    (folder / "routing.md").write_text(table(rows, note))
    (folder / "routing.svg").write_text(plot(rows))


def table(rows: list[Row], note: str) -> str:
    """All runs, a table for each fleet and trace, after where ours was best and where not."""
    lines = ["# Routing: what callers get by policy", "", note, "", *verdict(rows), ""]
    lines += ["![p50 and p99 by load](routing.svg)", ""]
    for (fleet, trace), part in _groups(rows).items():
        loads = sorted({row.load for row in part})
        rates = ", ".join(
            f"{row.load:.0%} = {row.per_second:.2f}/s (trace x{row.speed_up:.2f})"
            for row in part
            if row.policy == OURS
        )
        lines += [f"## {fleet}, {trace}", "", f"Load: {rates}.", ""]
        lines += [
            "p50 and p99 of the time to the first token / mean time to the end, in seconds"
            " · median time per token · good requests per second · share of prompt cached",
            "",
        ]
        lines.append("| policy | " + " | ".join(f"{load:.0%}" for load in loads) + " |")
        lines.append("|---|" + "---|" * len(loads))
        for policy in dict.fromkeys(row.policy for row in part):
            cells = [_cell(_find(part, policy, load), part) for load in loads]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(row: Row, part: list[Row]) -> str:
    same = [other for other in part if other.load == row.load and other.policy != BOUND]
    outcome = row.outcome
    figures = [
        _mark(getattr(outcome, name), min(getattr(other.outcome, name) for other in same))
        for name in ("p50_s", "p99_s", "end_mean_s")
    ]
    failed = f" · {outcome.failed:.1%} failed" if outcome.failed else ""
    return (
        f"{' / '.join(figures)} · {outcome.token_p50_s * 1000:.1f} ms · {outcome.goodput:.2f}"
        f" · {outcome.hit_rate:.0%}{failed}"
    )


def _mark(value: float, best: float) -> str:
    text = f"{value:.3f}" if value < 10 else f"{value:.0f}"
    return f"**{text}**" if round(value, DIGITS) <= round(best, DIGITS) else text


def plot(rows: list[Row]) -> str:
    """Small panels: p50 on the left and p99 on the right of each fleet and trace, log scale."""
    groups = list(_groups(rows).items())
    width, height = 2 * (PANEL_W + MARGIN) + 170, len(groups) * (PANEL_H + MARGIN) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    policies = list(dict.fromkeys(row.policy for row in rows))
    for index, ((fleet, trace), part) in enumerate(groups):
        top = index * (PANEL_H + MARGIN) + 30
        for column, name in enumerate(("p50_s", "p99_s")):
            left = column * (PANEL_W + MARGIN) + MARGIN
            title = f"{name[:3]} TTFT, {fleet}, {trace}"
            parts.append(f'<text x="{left}" y="{top - 8}" font-weight="bold">{title}</text>')
            parts += _panel(part, policies, name, left, top)
    for i, policy in enumerate(policies):
        y = 40 + 18 * i
        x = width - 160
        parts.append(
            f'<path d="M{x} {y}h22" stroke="{COLOURS[i]}" stroke-width="{_stroke(policy)}"/>'
            f'<text x="{x + 28}" y="{y + 4}">{policy}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _panel(part: list[Row], policies: list[str], name: str, left: int, top: int) -> list[str]:
    values = [getattr(row.outcome, name) for row in part]
    low = math.floor(math.log10(min(values)))
    high = min(
        math.ceil(math.log10(max(values))), low + 4
    )  # what is off the scale is off the chart
    loads = sorted({row.load for row in part})

    def at(load: float, value: float) -> tuple[float, float]:
        x = left + (load - loads[0]) / ((loads[-1] - loads[0]) or 1) * PANEL_W
        share = (math.log10(value) - low) / (high - low)
        return x, top + PANEL_H * (1 - min(share, 1.0))

    parts = [f'<rect x="{left}" y="{top}" width="{PANEL_W}" height="{PANEL_H}" fill="#f7f7f7"/>']
    for power in range(low, high + 1):
        y = at(loads[0], 10.0**power)[1]
        label = f"{10.0**power:g} s"
        parts.append(
            f'<path d="M{left} {y:.1f}h{PANEL_W}" stroke="#ddd"/>'
            f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for load in loads:
        x = at(load, 10.0**low)[0]
        parts.append(
            f'<text x="{x:.1f}" y="{top + PANEL_H + 14}" text-anchor="middle">{load:.0%}</text>'
        )
    for i, policy in enumerate(policies):
        points = [at(load, getattr(_find(part, policy, load).outcome, name)) for load in loads]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{COLOURS[i]}"'
            f' stroke-width="{_stroke(policy)}"/>'
        )
    return parts


def _stroke(policy: str) -> str:
    return "2.6" if policy == OURS else "1.2"


def _groups(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.fleet, row.trace), []).append(row)
    return groups


def _find(rows: list[Row], policy: str, load: float) -> Row:
    return next(row for row in rows if row.policy == policy and row.load == load)


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
