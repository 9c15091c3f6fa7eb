"""Where another policy has a better figure than ours, and what it gives for that."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.routing.simulation import Outcome

OURS: Final = "wai"
BOUND: Final = "lower bound"
NEAR: Final = 1.03  # what is within 3 % of the best counts as good
UNSEEN_S: Final = 0.01  # nobody notices a hundredth of a second, and pings vary as much
DIGITS: Final = 4  # of seconds: what differs by less is equal
FIGURES: Final = {
    "p50_s": "p50 of the time to the first token",
    "p99_s": "p99 of the time to the first token",
    "end_mean_s": "mean time to the answer's end",
}
SHORT: Final = {"p50_s": "p50", "p99_s": "p99", "end_mean_s": "end"}


@dataclass(frozen=True, slots=True)
class Row:
    """One run. `speed_up`: by how much the trace's time was divided to get `per_second`."""

    fleet: str
    trace: str
    load: float
    per_second: float
    speed_up: float
    policy: str
    outcome: Outcome

    @property
    def cell(self) -> tuple[str, str, float]:
        """What all policies are compared in."""
        return self.fleet, self.trace, self.load


class Reason(enum.Enum):
    """Why a figure is lost, as the report's heading."""

    PLAIN = "Nothing is given for it: no other figure of the winner is more than 3 % above ours"
    WAITS = "The slowest pay for it: the winner's p99 is more than 3 % above ours"
    MEDIAN = "The median pays for it: the winner's p50 is more than 3 % above ours"
    ENDS = "The answers pay for it: the winner's mean time to the end is more than 3 % above ours"
    UNSEEN = "The difference is under 10 ms"


@dataclass(frozen=True, slots=True)
class Loss:
    """A figure of a cell in which `winner` is more than 3 % better than `ours`."""

    figure: str
    ours: Row
    winner: Row

    @property
    def reason(self) -> Reason:
        """The first that holds."""
        mine, theirs = self.ours.outcome, self.winner.outcome
        if getattr(mine, self.figure) - getattr(theirs, self.figure) < UNSEEN_S:
            return Reason.UNSEEN
        prices = (("p99_s", Reason.WAITS), ("p50_s", Reason.MEDIAN), ("end_mean_s", Reason.ENDS))
        for name, reason in prices:
            if getattr(theirs, name) > getattr(mine, name) * NEAR:
                return reason
        return Reason.PLAIN


def cells(rows: Sequence[Row]) -> dict[tuple[str, str, float], list[Row]]:
    """The rows by cell."""
    found: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append(row)
    return found


def figure(row: Row, name: str) -> float:
    """A figure as precise as it is compared."""
    return round(float(getattr(row.outcome, name)), DIGITS)


def compared(rows: Sequence[Row], name: str) -> tuple[int, list[Loss]]:
    """In how many cells ours has the best figure `name`, and where it is more than 3 % above it."""
    lowest, lost = 0, []
    for part in cells(rows).values():
        ours = next(row for row in part if row.policy == OURS)
        rivals = [row for row in part if row.policy not in (OURS, BOUND)]
        best = min(rivals, key=lambda row: float(getattr(row.outcome, name)))
        lowest += figure(ours, name) <= figure(best, name)
        if figure(ours, name) > figure(best, name) * NEAR:
            lost.append(Loss(name, ours, best))
    return lowest, lost


def verdict(rows: Sequence[Row]) -> list[str]:
    """The counts, and the losses by reason, in Markdown."""
    lines: list[str] = []
    total = len(cells(rows))
    every: list[Loss] = []
    for name, words in FIGURES.items():
        lowest, lost = compared(rows, name)
        every += lost
        lines.append(
            f"- {words}: wai is lowest in {lowest} of {total} cells, and at most 3 % above the"
            f" lowest in {total - len(lost)}."
        )
    lines += ["", *_means(rows), "", "## Losses", ""]
    for reason in Reason:
        lost = [loss for loss in every if loss.reason is reason]
        if lost:
            lines += _table(reason, lost)
    return lines


def _table(reason: Reason, lost: Sequence[Loss]) -> list[str]:
    return [
        f"{reason.value} ({len(lost)}):",
        "",
        "| fleet, trace, load | figure | wai | best | by | its other figures | ours |",
        "|---|---|---|---|---|---|---|",
        *(_line(loss) for loss in lost),
        "",
    ]


def _line(loss: Loss) -> str:
    fleet, trace, load = loss.ours.cell
    mine, theirs = figure(loss.ours, loss.figure), figure(loss.winner, loss.figure)
    others = [name for name in FIGURES if name != loss.figure]

    def rest(row: Row) -> str:
        return ", ".join(f"{SHORT[name]} {figure(row, name):.4g}" for name in others)

    return (
        f"| {fleet}, {trace}, {load:.0%} | {SHORT[loss.figure]} | {mine:.4g} s | {theirs:.4g} s"
        f" | {loss.winner.policy} | {rest(loss.winner)} | {rest(loss.ours)} |"
    )


def _means(rows: Sequence[Row]) -> list[str]:
    """Each policy's figures as multiples of ours: geometric means over all cells."""
    lines = [
        "Over all cells, as multiples of wai's (geometric means):",
        "",
        f"| policy | {' | '.join(SHORT.values())} |",
        "|---|---|---|---|",
    ]
    grouped = cells(rows).values()
    for policy in dict.fromkeys(row.policy for row in rows):
        means = []
        for name in FIGURES:
            logs = []
            for part in grouped:
                by_policy = {row.policy: float(getattr(row.outcome, name)) for row in part}
                logs.append(math.log(by_policy[policy] / by_policy[OURS]))
            means.append(f"{math.exp(statistics.fmean(logs)):.2f}")
        lines.append(f"| {policy} | {' | '.join(means)} |")
    return lines
