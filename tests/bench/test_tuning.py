"""The search for the policies' constants: it keeps the best of what it tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.routing import tuning
from bench.routing.baselines import Preble
from bench.routing.policies import Policy
from bench.routing.rivals import POLICIES
from bench.routing.tuning import GRIDS, Search, tune, tuned


def test_one_constant_after_the_other_is_set_to_its_best_and_nothing_is_tried_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[float, float]] = []

    def score(self: Search, kind: Any) -> float:
        asked.append((kind.exploit, kind.apart))
        return float(abs(kind.exploit - 0.7) + abs(kind.apart - 2.0) + 1.0)

    monkeypatch.setattr(Search, "score", score)
    tried = Search({}).best(Preble, {"exploit": (0.5, 0.3, 0.7), "apart": (4.0, 2.0)})
    assert min(tried, key=lambda pair: pair[1]) == ({"exploit": 0.7, "apart": 2.0}, 1.0)
    assert tried[0][0] == {"exploit": 0.5, "apart": 4.0}
    assert len(asked) == len(set(asked)) == len(tried)


def test_the_constants_that_are_searched_are_those_that_the_policies_read() -> None:
    for name, grid in GRIDS.items():
        kind: type[Policy] = POLICIES[name]
        assert all(isinstance(getattr(kind, constant), int | float) for constant in grid)
        changed = tuned(kind, dict.fromkeys(grid, 123.0))
        assert all(getattr(changed, constant) == 123.0 for constant in grid)


def test_a_search_for_some_policies_keeps_the_rows_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Search, "score", lambda self, kind: 1.0)
    monkeypatch.setattr(tuning, "load", lambda *_: {})
    tune(tmp_path, tmp_path, [])
    file = tmp_path / "routing-tuning.md"
    before = file.read_text()
    assert all(f"| {name} |" in before for name in GRIDS)
    monkeypatch.setattr(Search, "score", lambda self, kind: 2.0)
    tune(tmp_path, tmp_path, ["preble"])
    rows = [line for line in file.read_text().splitlines() if line.startswith("| ")]
    assert [row for row in rows if "2.0000" in row] == [row for row in rows if "preble" in row]
    assert len(rows) == len(GRIDS) + 1
