"""`python -m bench.routing --tune`: the search for the constants of every policy that has some.

All are searched in the same way, wai's two settings too: one constant after the other is set to
each of its values, beginning with its authors' (the first in each row), and the best is kept, until
a round changes nothing. The objective is one figure over all fleets, traces and loads of the
window: the geometric mean of p50 and p99 of the time to the first token and of the mean time to the
end. Found values are written into the classes by hand.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.routing.fleets import FLEETS, capacity
from bench.routing.node import NodeSpec
from bench.routing.policies import Policy
from bench.routing.rivals import POLICIES
from bench.routing.simulation import Simulation
from bench.routing.traces import TraceRequest, load, paced

Values = Mapping[str, float]

WINDOW: Final = 0.25  # where in the traces: the report's window begins at 60 %
REQUESTS: Final = 1000
LOADS: Final = (0.3, 0.7, 0.95)
ROUNDS: Final = 3
RESTS: Final = (10.0, 0.0, 1.0, 3.0, 30.0)
MATCHES: Final = (0.3, 0.1, 0.5, 0.7)
GRIDS: Final[dict[str, dict[str, Sequence[float]]]] = {
    "random": {"rest_s": RESTS},
    "round robin": {"rest_s": RESTS},
    "least connections": {"rest_s": RESTS},
    "power of choices": {"drawn": (2, 3, 4, 6), "rest_s": RESTS},
    "most free slots": {"rest_s": RESTS},
    "free slots, relay queue": {"rest_s": RESTS},
    "prefix hash": {
        "bound": (1.25, 1.1, 1.5, 2.0, math.inf),
        "head": (4, 1, 2, 8),
        "rest_s": RESTS,
    },
    "cache-aware": {
        "apart": (64, 1, 4, 16),
        "times": (1.5, 1.1, 2.0),
        "match": MATCHES,
        "rest_s": RESTS,
    },
    "weighted least connections": {"speed": (0.0, 0.5, 1.0, 1.5), "rest_s": RESTS},
    "cache-aware per slot": {
        "apart": (0.5, 0.1, 0.25, 1.0, 2.0),
        "least_match": MATCHES,
        "rest_s": RESTS,
    },
    "preble": {
        "exploit": (0.5, 0.3, 0.7, 0.9),
        "apart": (math.inf, 1.5, 2.0, 4.0),
        "rest_s": RESTS,
    },
    "inference extension": {
        "queue": (2.0, 1.0, 4.0, 8.0),
        "cache": (2.0, 0.0, 1.0, 4.0, 8.0),
        "prefix": (3.0, 1.0, 6.0),
        "rest_s": RESTS,
    },
    "wai": {"first_token_weight": (20.0, 10.0, 40.0), "pass_s": (40.0, 20.0, 80.0)},
}


def tuned(kind: type[Policy], values: Values) -> type[Policy]:
    """The policy with other constants."""
    return type(kind.__name__, (kind,), dict(values))


class Search:
    """Tries constants on the runs of one window."""

    def __init__(self, traces: Mapping[str, list[TraceRequest]]) -> None:
        self.runs: list[tuple[list[NodeSpec], list[TraceRequest]]] = [
            (specs, paced(trace, level * capacity(specs, trace))[0])
            for specs in FLEETS.values()
            for trace in traces.values()
            for level in LOADS
        ]

    def score(self, kind: type[Policy]) -> float:
        """The objective, in seconds: less is better."""
        logs: list[float] = []
        for specs, requests in self.runs:
            outcome = Simulation(specs, kind, 1).run(requests)
            logs += [math.log(t) for t in (outcome.p50_s, outcome.p99_s, outcome.end_mean_s)]
        return math.exp(statistics.fmean(logs))

    def best(
        self, kind: type[Policy], grid: Mapping[str, Sequence[float]]
    ) -> list[tuple[Values, float]]:
        """All that was tried with its score, the authors' values first."""
        values: Values = {name: choices[0] for name, choices in grid.items()}
        tried = [(values, self.score(tuned(kind, values)))]
        for _ in range(ROUNDS):
            before = values
            for name, choices in grid.items():
                for choice in choices:
                    other = {**values, name: choice}
                    if any(other == done for done, _ in tried):
                        continue
                    tried.append((other, self.score(tuned(kind, other))))
                values = min(tried, key=lambda pair: pair[1])[0]
            if values == before:
                break
        return tried


def tune(traces: Path, out: Path, only: Sequence[str]) -> None:
    """Search for `only` these policies' constants (all, if empty), and write them into `out`."""
    search = Search(load(traces, REQUESTS, WINDOW))
    started = time.monotonic()
    found: dict[str, list[tuple[Values, float]]] = {}
    for name, grid in GRIDS.items():
        if not only or name in only:
            found[name] = search.best(POLICIES[name], grid)
            print(f"{time.monotonic() - started:.0f} s", *_row(name, found[name]), file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "routing-tuning.md"
    rows = {name: f"| {' | '.join(_row(name, tried))} |" for name, tried in found.items()}
    if file.exists():  # the other policies' rows stay
        lines = file.read_text().splitlines()
        rows = {
            name: row for row in lines for name in GRIDS if row.startswith(f"| {name} |")
        } | rows
    file.write_text(_report([rows[name] for name in GRIDS if name in rows], len(search.runs)))


def _report(rows: Sequence[str], runs: int) -> str:
    levels = ", ".join(f"{level:.0%}" for level in LOADS)
    lines = [
        "# Routing: the search for each policy's constants",
        "",
        f"`python -m bench.routing --tune`: {REQUESTS} requests of each trace from {WINDOW:.0%} of",
        f"it on, at {levels} load, in all fleets: {runs} runs of each choice. The objective is the",
        "geometric mean of p50 and p99 of the time to the first token and of the mean time to the",
        "end over all runs, in seconds. One constant after the other was set to each of its",
        "values, beginning with its authors', until a round changed nothing.",
        "",
        "| policy | authors' | objective | best | objective | tried |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _row(name: str, tried: list[tuple[Values, float]]) -> list[str]:
    (first, before), (values, after) = tried[0], min(tried, key=lambda pair: pair[1])
    return [name, _text(first), f"{before:.4f}", _text(values), f"{after:.4f}", str(len(tried))]


def _text(values: Values) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
