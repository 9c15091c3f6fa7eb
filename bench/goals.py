"""Compare a report with the performance goals (docs/performance.md): met, missed, not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.report import Report, aligned, number
from bench.scenarios import FLOOR, HAPROXY, OURS


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal: `measure` returns the figure (None: not measured), which must be within `limit`."""

    number: int
    text: str
    limit: float
    measure: Callable[[Report], float | None]
    at_least: bool = False

    def verdict(self, report: Report) -> tuple[str, str]:
        """Return the figure and whether the goal is met."""
        value = self.measure(report)
        if value is None:
            return "–", "not measured"
        met = value >= self.limit if self.at_least else value <= self.limit
        return number(value), "met" if met else "MISSED"


def _figure(scenario: str, name: str) -> Callable[[Report], float | None]:
    return lambda report: report.median(scenario, OURS).get(name)


def _ratio(scenario: str, base: str, name: str) -> Callable[[Report], float | None]:
    return lambda report: report.ratio(scenario, OURS, base, name)


def _own(name: str) -> Callable[[Report], float | None]:
    return lambda report: report.ours.get(name)


def _quotient(over: tuple[str, str], under: tuple[str, str]) -> Callable[[Report], float | None]:
    def measure(report: Report) -> float | None:
        above = report.median(over[0], OURS).get(over[1])
        below = report.median(under[0], OURS).get(under[1])
        return above / below if above and below else None

    return measure


_EVENT: Final = "cpu_us_per_event"
_REQUEST: Final = "cpu_ms_per_request"
_GIB: Final = "cpu_s_per_gib"
GOALS: Final = (
    Goal(1, "SSE 200 × 20/s: CPU/event ÷ the floor's", 1.5, _ratio("sse-200", FLOOR, _EVENT)),
    Goal(1, "SSE 1,000 × 20/s: CPU/event ÷ haproxy's", 0.9, _ratio("sse-1000", HAPROXY, _EVENT)),
    Goal(1, "SSE by h2 ÷ by h1", 1.15, _quotient(("sse-200-h2", _EVENT), ("sse-200", _EVENT))),
    Goal(2, "small POST: ms CPU", 0.5, _figure("post-h1", _REQUEST)),
    Goal(2, "small POST h2 ÷ h1", 1.2, _quotient(("post-h2", _REQUEST), ("post-h1", _REQUEST))),
    Goal(2, "new TLS connection: CPU ÷ haproxy's", 1.5, _ratio("post-new", HAPROXY, _REQUEST)),
    Goal(3, "saturated SSE: CPU/event ÷ haproxy's", 1.0, _ratio("sse-flat", HAPROXY, _EVENT)),
    Goal(3, "download: CPU/GiB ÷ haproxy's", 1.3, _ratio("down", HAPROXY, _GIB)),
    Goal(3, "upload: CPU/GiB ÷ haproxy's", 1.5, _ratio("up", HAPROXY, _GIB)),
    Goal(4, "first token: added p50 ms", 0.8, _figure("sse-200", "added_first_p50_ms")),
    Goal(4, "event: added p50 ms", 0.2, _figure("sse-200", "added_event_p50_ms")),
    Goal(4, "event beside bulk: added p50 ms", 0.6, _figure("beside", "added_event_p50_ms")),
    Goal(4, "event beside bulk: added p99 ms", 7, _figure("beside", "added_event_p99_ms")),
    Goal(5, "idle stream: KiB", 40, _figure("idle", "kib_per_stream")),
    Goal(
        5, "memory after ÷ before", 1.25, _quotient(("idle", "mib_after"), ("idle", "mib_before"))
    ),
    Goal(6, "wai --help: ms", 80, _own("help_ms")),
    Goal(6, "wai relay ready: ms CPU", 250, _own("relay_ready_cpu_ms")),
    Goal(6, "wai node run registered: ms CPU", 300, _own("node_ready_cpu_ms")),
    Goal(7, "200 ms round trip: rate ÷ one TCP's", 0.8, _own("far_down_ratio"), at_least=True),
    Goal(7, "the same for uploads", 0.8, _own("far_up_ratio"), at_least=True),
    Goal(8, "1,000 nodes, STATUS each second: cores", 0.15, _own("nodes_cores")),
    Goal(8, "1,000 nodes: KiB each", 60, _own("kib_per_node")),
)


def verdicts(report: Report) -> str:
    """The table of goals."""
    lines = [["goal", "is", "shall be", ""]]
    for goal in GOALS:
        value, verdict = goal.verdict(report)
        bound = f"{'≥' if goal.at_least else '≤'} {number(goal.limit)}"
        lines.append([f"{goal.number}. {goal.text}", value, bound, verdict])
    return "\nGoals\n" + aligned(lines)
