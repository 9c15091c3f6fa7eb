"""Half a minute of `make chaos`: random faults, and every stream whole all the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.chaos.run import Plan, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_streams_survive_random_faults(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    report = run(Plan(faults=24, streams=6, seed=seed, upgrades=1, episodes=0), tmp_path)
    assert not report.violations, report.text()
    assert sum(stream.whole for stream in report.streams) >= 6
