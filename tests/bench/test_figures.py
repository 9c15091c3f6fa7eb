"""Percentiles, medians, ratios and verdicts: a wrong one would be believed."""

import json
import math
from pathlib import Path

import pytest

from bench.dashboard_page import longest_task_cpu_ms
from bench.goals import GOALS, verdicts
from bench.plot import bars, write_plots
from bench.procstat import parse_stat
from bench.report import Report, read_report, table
from bench.scenarios import DIRECT, FLOOR, FULL, HAPROXY, LITELLM, OURS, QUICK
from bench.summary import median_figures, percentile, spread_ms


def test_percentiles_are_interpolated() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile([5], 99) == 5
    assert math.isnan(percentile([], 50))


def test_spread_sorts_first() -> None:
    assert spread_ms("x", [3_000_000, 1_000_000, 2_000_000])["x_p50_ms"] == 2.0


def test_medians_skip_runs_without_the_figure() -> None:
    assert median_figures([{"a": 1.0}, {"a": 3.0, "b": 9.0}, {"a": 2.0}]) == {"a": 2.0, "b": 9.0}


def test_a_process_name_with_brackets_does_not_shift_the_fields() -> None:
    stat = "12 (a) b (c)) S 7 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 5 0 0"
    assert parse_stat(stat) == (7, 2.0)


def _report() -> Report:
    report = Report()
    for ours, theirs in ((80.0, 100.0), (200.0, 200.0), (90.0, 100.0)):
        report.add("sse-200", DIRECT, {"event_p50_ms": 0.05})
        report.add("sse-200", OURS, {"cpu_us_per_event": ours, "event_p50_ms": 0.25})
        report.add("sse-200", HAPROXY, {"cpu_us_per_event": theirs, "event_p50_ms": 0.2})
        report.add("sse-200", FLOOR, {"cpu_us_per_event": ours / 1.6})
    return report


def test_ratios_are_made_round_by_round() -> None:
    # a loud moment hits both paths of its round: the ratio of medians would be the same by luck
    assert _report().ratio("sse-200", OURS, HAPROXY, "cpu_us_per_event") == pytest.approx(0.9)


def test_what_a_path_adds_is_told_against_the_direct_one_of_its_round() -> None:
    assert _report().median("sse-200", OURS)["added_event_p50_ms"] == pytest.approx(0.2)


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = _report()
    report.save(tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == report


def test_goals_tell_met_missed_and_not_measured() -> None:
    text = verdicts(_report())
    assert "MISSED" in text  # 1.6 times the floor's cost where 1.5 was the goal
    assert " met" in text  # 0.2 ms added
    assert "not measured" in text
    assert {goal.number for goal in GOALS} == set(range(1, 9))


def test_tables_and_plots_show_every_path(tmp_path: Path) -> None:
    text = table(_report(), FULL[0])
    assert all(path in text for path in (DIRECT, OURS, HAPROXY))
    assert any("added" in path.name for path in write_plots(_report(), tmp_path))
    assert "&lt;" in bars("<title>", "ms", {OURS: 1.0})


def test_each_path_is_told_what_it_can_hold() -> None:
    by_name = {one.name: one for one in FULL}
    assert "4000" in by_name["idle"].load_for(OURS)
    assert by_name["idle"].load_for(HAPROXY)[-1] == "1000"
    assert by_name["sse-200"].load_for(LITELLM)[-1] == "20"
    assert not by_name["down"].is_for(LITELLM)
    assert "sse-1000" not in {one.name for one in QUICK}


def test_the_longest_task_is_told_by_its_cpu_time_and_of_the_pages_thread_only() -> None:
    def task(tid: int, dur: int, tdur: int) -> dict[str, object]:
        return {"ph": "X", "pid": 1, "tid": tid, "name": "RunTask", "dur": dur, "tdur": tdur}

    named = [(7, "CrRendererMain"), (8, "Compositor")]
    events = [
        {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for tid, name in named
    ]
    events += [task(7, 90_000, 12_300), task(7, 20_000, 19_940), task(8, 99_000, 99_000)]
    assert longest_task_cpu_ms(json.dumps({"traceEvents": events}).encode()) == 19.9
    assert longest_task_cpu_ms(b'{"traceEvents": []}') == 0.0
