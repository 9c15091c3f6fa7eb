"""What nodes tell of their machines: bounded, in steps, and in Prometheus' format."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from wai_api.hardware import HISTORY_STEP_S, HISTORY_STEPS, GpuNow, MachineNow, ServerNow
from wai_relay.observe.hardware import FRESH_S, LEAST_S, HardwareBook
from wai_relay.observe.machine_metrics import machine_lines


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(use: float | None = 50.0, **more: Any) -> dict[str, Any]:
    return {"cpu": 10.0, "ram_used": 1, "ram_total": 2, "gpus": [{"name": "g", "use": use}], **more}


def book() -> tuple[Time, HardwareBook]:
    clock = Time()
    return clock, HardwareBook(clock, clock)


def test_the_history_has_a_mean_for_each_step_and_gaps_where_nothing_was_told() -> None:
    clock, machines = book()
    for use, wait_s in (
        (40.0, 1.0),
        (60.0, 2 * HISTORY_STEP_S),
        (None, HISTORY_STEP_S),
        (90.0, 1.0),
    ):
        machines.hear("n", "hardware", told(use))
        clock.now += wait_s
    history = machines.rows["n"].history
    assert (history[-4:], len(history)) == ((50.0, None, None, 90.0), HISTORY_STEPS)
    clock.now += 10 * HISTORY_STEPS * HISTORY_STEP_S
    machines.hear("n", "hardware", told(1.0))
    assert machines.rows["n"].history == (*[None] * (HISTORY_STEPS - 1), 1.0)


def test_the_busiest_card_counts_and_without_one_the_processor() -> None:
    clock, machines = book()
    cards = [{"name": "a", "use": 3.0}, {"name": "b", "use": 80.0}, {"name": "c"}]
    machines.hear("n", "hardware", told(gpus=cards))
    assert machines.rows["n"].history[-1] == 80.0
    clock.now += 60
    machines.hear("n", "hardware", told(gpus=[]))
    assert machines.rows["n"].history[-1] == 10.0


def test_a_node_that_floods_is_heard_twice_a_second() -> None:
    clock, machines = book()
    machines.hear("n", "hardware", told(1.0))
    first = machines.rows["n"]
    for _ in range(1000):
        machines.hear("n", "hardware", told(99.0))
    assert machines.rows["n"] is first
    clock.now += LEAST_S
    machines.hear("n", "hardware", told(99.0))
    assert machines.rows["n"] is not first


SENSELESS: tuple[Any, ...] = (
    *(None, [], "x", 7, {"cpu": 1e9}, {"cpu": "hot"}, {"cpu": float("nan")}),
    *({"gpus": [{}]}, {"gpus": [{"name": "g"}] * 17}, {"gpus": [{"name": "g" * 300}]}),
    *({"gpus": [{"name": "g", "used": -1}]}, {"gpus": [{"name": "g", "used": 1 << 60}]}),
    *({"processes": [{"model": "m"}] * 17}, {"problem": "p" * 300}),
)


@pytest.mark.parametrize("value", SENSELESS)
def test_what_makes_no_sense_is_logged_once_and_what_was_known_stays(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock, machines = book()
    machines.hear("n", "hardware", told())
    with caplog.at_level(logging.WARNING, "wai.nodes"):
        for _ in range(20):
            clock.now += 1
            machines.hear("n", "hardware", value)
    assert len(caplog.records) == 1
    assert machines.rows["n"].now.gpus[0].use == 50.0


def test_a_machine_that_says_nothing_more_has_no_gauges_and_a_node_that_left_no_row() -> None:
    clock, machines = book()
    machines.hear("n", "hardware", told())
    machines.hear("n", "deployment", told())
    assert machines.fresh("n") is not None
    clock.now += FRESH_S + 1
    assert machines.fresh("n") is None
    assert machines.fresh("other") is None
    machines.keep(set())
    assert machines.rows == {}


def test_gauges_have_bounded_labels_and_leave_out_what_is_not_known() -> None:
    cards = (
        GpuNow(name="NVIDIA H200", use=50.0, used=3, total=4, temperature=61.5, power=300.0),
        GpuNow(name="NVIDIA H200", problem="it is lost"),
    )
    servers = tuple(ServerNow(model='a/b:"Q4', ram=5, gpu=2) for _ in range(2))
    machine = MachineNow(cpu=25.0, ram_used=1, ram_total=2, gpus=cards, processes=servers)
    lines = [
        line for line in machine_lines([("box", machine), ("cpu", MachineNow())]) if line[0] != "#"
    ]
    assert lines == [
        'wai_node_cpu_use_ratio{node="box"} 0.25',
        'wai_node_ram_used_bytes{node="box"} 1',
        'wai_node_ram_bytes{node="box"} 2',
        'wai_node_gpu_use_ratio{node="box",gpu="0"} 0.5',
        'wai_node_gpu_memory_used_bytes{node="box",gpu="0"} 3',
        'wai_node_gpu_memory_bytes{node="box",gpu="0"} 4',
        'wai_node_gpu_temperature_celsius{node="box",gpu="0"} 61.5',
        'wai_node_gpu_power_watts{node="box",gpu="0"} 300',
        'wai_node_gpu_lost{node="box",gpu="0"} 0',
        'wai_node_gpu_lost{node="box",gpu="1"} 1',
        'wai_node_model_gpu_bytes{node="box",model="a/b:\\"Q4"} 4',
        'wai_node_model_ram_bytes{node="box",model="a/b:\\"Q4"} 10',
    ]
    assert list(machine_lines([])) == []
