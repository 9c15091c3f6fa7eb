"""A process whose wall clock is moved while it runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.harness.moved_clock import moved_clock

DAY_S: Final = 86_400.0
SLACK_S: Final = 3600.0  # far more than any machine is late
TELL_THE_TIME: Final = """\
import sys, time
for _ in sys.stdin:
    time.sleep(0.001)
    print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)
"""


def test_the_wall_clock_jumps_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    clock = moved_clock(tmp_path / "clock")
    with subprocess.Popen(
        [*clock.command, sys.executable, "-c", TELL_THE_TIME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for offset_s in (0.0, 40 * DAY_S, -DAY_S, 0.0):
            clock.move(offset_s)
            print(file=process.stdin, flush=True)
            wall, wall_ns, monotonic = map(float, process.stdout.readline().split())
            assert abs(wall - time.time() - offset_s) < SLACK_S
            assert abs(wall_ns - time.time() - offset_s) < SLACK_S
            assert abs(monotonic - time.monotonic()) < SLACK_S
        process.stdin.close()
