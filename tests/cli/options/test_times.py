"""Times on a command line: spans, days and times, in the zone that the command shows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import pytest

from wai_cli.options.times import span_text, span_up_to, when_here, when_utc

NOON = 1795435200  # 2026-11-23T12:00 UTC


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
def test_a_time_without_a_zone_is_read_in_the_zone_in_which_times_are_shown() -> None:
    assert when_utc("2026-11-23T12:00") == NOON
    assert when_here("2026-11-23T21:00") == NOON
    assert when_here("2026-11-23T12:00Z") == when_utc("2026-11-23T21:00+09:00") == NOON


@pytest.mark.parametrize(("text", "ago_s"), [("30m", 1800), ("2h", 7200), ("7d", 604800)])
def test_spans_are_so_long_ago(text: str, ago_s: int) -> None:
    assert when_here(text) == pytest.approx(time.time() - ago_s, abs=2)


@pytest.mark.parametrize("text", ["", "5x", "-1d", "1.5d", "\u0661d", "2026-02-30", "yesterday"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time such as"):
        when_here(text)


def test_a_span_is_bounded_and_the_bound_is_told() -> None:
    read = span_up_to(30 * 86400.0)
    assert [read("0"), read("90m"), read("30d")] == [0, 5400, 30 * 86400]
    with pytest.raises(argparse.ArgumentTypeError, match="at most 30d"):
        read("5w")
    assert [span_text(s) for s in (10.0, 90.0, 3600.0, 86400.0, 0.5)] == [
        *("10s", "90s", "1h", "1d", "0.5s")
    ]
