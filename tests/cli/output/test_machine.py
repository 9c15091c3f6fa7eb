"""A node's machine in the cells of `wai top`, whatever is known of it."""

from __future__ import annotations

from typing import Any

import pytest

from wai_cli.output.machine import machine_cells, sparkline

GPU = {"name": "H200", "use": 87.0, "used": 24 << 30, "total": 141 << 30}
GPU |= {"temperature": 64.0, "power": 412.4, "problem": ""}
CPU_ONLY = {"cpu": 12.0, "ram_used": 4 << 30, "ram_total": 16 << 30, "gpus": [], "problem": ""}


@pytest.mark.parametrize(
    ("now", "cells"),
    [
        ({"gpus": [GPU]}, ("GPU 87% ", "24.0 GiB of 141.0 GiB", "64 °C 412 W")),
        ({"gpus": [GPU, GPU]}, ("2 GPUs 87% ", "48.0 GiB of 282.0 GiB", "64 °C 825 W")),
        ({"gpus": [{"name": "g"}]}, ("GPU - ", "-", "-")),
        (
            {"gpus": [{**GPU, "problem": "lost"}]},
            ("GPU fails ", "24.0 GiB of 141.0 GiB", "64 °C 412 W"),
        ),
        (CPU_ONLY, ("CPU 12% ", "4.0 GiB of 16.0 GiB", "-")),
        ({**CPU_ONLY, "problem": "reboot"}, ("GPU fails ", "-", "-")),
    ],
)
def test_what_is_known_is_shown(now: dict[str, Any], cells: tuple[str, str, str]) -> None:
    assert machine_cells({"now": now, "history": []}) == cells


def test_of_older_nodes_nothing_is_known() -> None:
    assert machine_cells(None) == ("-", "-", "-")


def test_the_last_two_minutes_are_bars_with_gaps() -> None:
    history = [*[5.0] * 52, 0.0, None, 25.0, 50.0, 75.0, 99.0, 100.0, None]
    assert sparkline(history) == "▁ ▃▅▇██ "
