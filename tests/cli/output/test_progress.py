"""A progress line stays one line on a terminal, and is few lines in a log."""

from __future__ import annotations

import os

import pytest

from wai_cli.output.deployment import state_text
from wai_cli.output.progress import LOGGED_EVERY_S, ProgressLine

Captured = pytest.CaptureFixture[str]


def test_a_log_gets_a_line_with_each_step_and_now_and_then(capsys: Captured) -> None:
    now = [0.0]
    line = ProgressLine(lambda: now[0])
    for percent in range(100):
        line.show(f"downloading {percent} %", "downloading")
        now[0] += LOGGED_EVERY_S / 64  # exact in binary
    line.show("starting", "starting")
    line.show("starting", "starting")
    line.end()
    assert capsys.readouterr().err.splitlines() == [
        "downloading 0 %",
        "downloading 64 %",
        "starting",
    ]


def test_a_line_wider_than_the_terminal_is_cut_and_not_wrapped(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))
    ProgressLine().show("x" * 200)
    assert capsys.readouterr().err == "\r\x1b[K" + "x" * 38 + "…"


def test_a_large_download_fits_eighty_columns() -> None:
    progress = {
        "done_bytes": 99 << 30,
        "total_bytes": 123 << 30,
        "rate_bps": 123.4 * (1 << 20),
        "eta_s": 5399.0,
    }
    view = {"model": "publisher/" + "n" * 60, "state": "downloading", "progress": progress}
    text = state_text(view)
    assert text.startswith("downloading [################    ]  80%")
    assert text.endswith("of 123.0 GiB, 123.4 MiB/s, 90 min left")
    assert len(text) < 80
