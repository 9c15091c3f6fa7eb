"""Draw a report as bar charts: one SVG for each figure, without a plotting library."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final

from bench.report import Report, added_name, number
from bench.scenarios import FULL, OURS

_WIDTH: Final = 720
_LABEL: Final = 210
_BAR: Final = 22
_GAP: Final = 8
_TOP: Final = 46
_OURS_COLOUR: Final = "#1a7f5a"
_OTHER_COLOUR: Final = "#8a94a0"


def bars(title: str, unit: str, values: dict[str, float]) -> str:
    """Draw one chart of horizontal bars, shortest first, since less is better in all but rates."""
    longest = max(values.values(), default=1.0) or 1.0
    room = _WIDTH - _LABEL - 90
    height = _TOP + len(values) * (_BAR + _GAP) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-weight="600">{escape(title)}</text>',
        f'<text x="12" y="36" fill="#5a6470" font-size="11">{escape(unit)}</text>',
    ]
    y = _TOP
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        colour = _OURS_COLOUR if name == OURS else _OTHER_COLOUR
        length = max(1.0, room * max(value, 0.0) / longest)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{y + 15}">{number(value)}</text>',
        ]
        y += _BAR + _GAP
    return "\n".join([*parts, "</svg>", ""])


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write one SVG for each figure of each scenario, under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for scenario in FULL:
        for figure in scenario.shown:
            shown = added_name(report, scenario, figure)
            values = {
                path: medians[shown]
                for path in report.rounds.get(scenario.name, {})
                if shown in (medians := report.median(scenario.name, path))
            }
            if values:
                path = folder / f"{scenario.name}-{shown.replace('_', '-')}.svg"
                path.write_text(bars(scenario.title, shown.replace("_", " "), values))
                written.append(path)
    return written
