"""How busy a machine is: what drivers do not tell, may not tell, or tell wrongly; and how often."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.harness.fake_nvml import (
    LOST,
    MISMATCH,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    Errors,
    FakeNvml,
)
from wai_node.models import nvidia
from wai_node.models.amd import read_amd
from wai_node.models.gauges import MAX_GPUS, MAX_PROCESSES, Gauges, GpuGauges, ProcessGauges
from wai_node.models.nvidia import AGAIN_S, Nvidia
from wai_node.models.sampler import EVENT, HANGS, QUICK_S, SLOW_S, Looker, Sampler, watch_seconds
from wai_protocol.errors import RequestError
from wai_protocol.frames import pack
from wai_protocol.limits import MAX_EVENT_BYTES

FIGURES = ("name", "memory", "use", "heat", "power", "limit", "compute", "graphics")


def read(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> tuple[list[GpuGauges], dict[int, int]]:
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return Nvidia().read({41})


def test_a_card_tells_all_and_of_processes_only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    [card], memory = read(FakeNvml({"graphics": [(41, 20 << 30)]}), monkeypatch)
    assert card == GpuGauges("NVIDIA H200", 87.0, 24 << 30, 150 << 30, 64.0, 412.0, 700.0)
    assert memory == {41: 20 << 30}  # it is in both listings, and counts once


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
@pytest.mark.parametrize("figure", FIGURES)
def test_one_figure_that_is_not_told_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, figure: str, error: int
) -> None:
    [whole], _ = read(FakeNvml({}), monkeypatch)
    [card], memory = read(FakeNvml({figure: Errors(error)}), monkeypatch)
    lacking: dict[str, dict[str, Any]] = {
        "name": {"name": "NVIDIA GPU 0"},
        "memory": {"used_bytes": None, "total_bytes": None},
        "use": {"use": None},
        "heat": {"temperature_c": None},
        "power": {"power_w": None},
        "limit": {"power_limit_w": None},
    }
    assert card == replace(whole, **lacking.get(figure, {}))
    assert memory == ({} if figure == "compute" else {41: 20 << 30})


def test_a_card_that_is_lost_says_so_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone, at_once = {"use": Errors(LOST)}, {"handle": Errors(LOST)}
    cards, _ = read(FakeNvml(at_once, {}, gone), monkeypatch)
    assert [card.problem for card in cards] == [nvidia.LOST, "", nvidia.LOST]
    assert [card.use for card in cards] == [None, 87.0, None]


def test_memory_of_a_process_that_is_not_told_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(FakeNvml({"compute": [(41, None)]}), monkeypatch)[1] == {}


def test_the_library_stays_open_and_is_opened_again_after_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake, now = FakeNvml({}), 0.0
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    driver = Nvidia(lambda: now)
    for _ in range(3):
        assert driver.read(())[0]
    assert (fake.opened, fake.closed) == (1, 0)
    fake.count_error = UNKNOWN
    assert driver.read(()) == ([], {})
    fake.count_error = 0
    assert driver.read(()) == ([], {})  # not asked again at once
    now += AGAIN_S
    assert driver.read(())[0]
    assert (fake.opened, fake.closed) == (2, 1)


def test_a_driver_that_was_updated_under_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({}, init=MISMATCH))
    driver = Nvidia()
    assert driver.read(()) == ([], {})
    assert "reboot the machine" in driver.problem


def test_amd_cards_are_read_from_sysfs_with_what_they_have(tmp_path: Path) -> None:
    def card(name: str, **files: str) -> None:
        for file, text in files.items():
            path = tmp_path / name / "device" / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    card(
        "card0",
        vendor="0x1002\n",
        product_name="Radeon RX 7900\n",
        mem_info_vram_total="17163091968\n",
        mem_info_vram_used="1000000000\n",
        gpu_busy_percent="42\n",
        hwmon__hwmon3__temp1_input="61000\n",
        hwmon__hwmon3__power1_average="201000000\n",
        hwmon__hwmon3__power1_cap="327000000\n",
    )
    card("card1", vendor="0x1002\n", mem_info_vram_total="1024\n", gpu_busy_percent="busy\n")
    card("card2", vendor="0x10de\n", mem_info_vram_total="1024\n")
    card("card3", vendor="0x1002\n")
    full, bare = read_amd(tmp_path)
    assert full == GpuGauges("Radeon RX 7900", 42.0, 1000000000, 17163091968, 61.0, 201.0, 327.0)
    assert bare == GpuGauges("AMD GPU", total_bytes=1024)
    assert read_amd(tmp_path / "absent") == []


def test_what_is_told_is_bounded_and_has_no_figure_that_no_sensor_can_mean() -> None:
    nonsense = GpuGauges("G" * 999, 4e9, -1, 1 << 60, float("nan"), float("inf"), 1e9, "p" * 999)
    many = Gauges(
        -3.0,
        *(1, 2),
        gpus=(nonsense,) * 99,
        processes=(ProcessGauges("m" * 256, 1),) * 99,
    ).to_wire()
    assert (len(many["gpus"]), len(many["processes"])) == (MAX_GPUS, MAX_PROCESSES)
    assert len(pack(many)) < MAX_EVENT_BYTES
    gpu = many["gpus"][0]
    assert {gpu[name] for name in ("use", "used", "total", "temperature", "power")} == {None}
    assert many["cpu"] is None


def test_this_machine_is_read_with_our_process(tmp_path: Path) -> None:
    looker = Looker(drm=tmp_path)
    looker.read({})
    sum(range(200_000))
    told = looker.read({os.getpid(): "m", 999_999_999: "ended"})
    assert 0 < told.ram_used_bytes < told.ram_total_bytes
    assert [process.model for process in told.processes] == ["m"]
    assert told.processes[0].ram_bytes > 1 << 20


class Slow(Looker):
    """A driver that hangs until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.looks = threading.Event(), 0

    def read(self, processes: Mapping[int, str]) -> Gauges:
        self.looks += 1
        assert self.go.wait(20)
        return Gauges(1.0, 2, 3)


@pytest.mark.anyio
async def test_a_driver_that_hangs_is_told_and_not_asked_a_second_time() -> None:
    told: list[dict[str, Any]] = []
    slow = Slow()
    sampler = Sampler(
        *(slow, dict, lambda name, value: told.append(value)), clock=lambda: 0.0, hang_s=0.01
    )
    running = asyncio.get_running_loop().create_task(sampler.run())
    while len(told) < 3:  # noqa: ASYNC110 -- a thread tells
        await asyncio.sleep(0.005)
    assert {one["problem"] for one in told} == {HANGS}
    slow.go.set()
    while told[-1]["problem"]:  # noqa: ASYNC110 -- a thread tells
        await asyncio.sleep(0.005)
    assert slow.looks == 1
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.anyio
async def test_it_looks_once_a_second_while_somebody_looks_and_else_every_fifteen() -> None:
    now = 100.0
    sampler = Sampler(Looker(), dict, lambda name, value: None, clock=lambda: now)
    assert sampler.wait_s() == 0
    sampler._looked_at = now
    assert sampler.wait_s() == SLOW_S
    sampler.watch(30)
    assert sampler.wait_s() == QUICK_S
    sampler.watch(30)  # asking more often makes it no quicker
    assert sampler.wait_s() == QUICK_S
    now += 31
    sampler._looked_at = now
    assert sampler.wait_s() == SLOW_S
    sampler.watch(1e9)
    now += 61
    sampler._looked_at = now
    assert sampler.wait_s() == SLOW_S


@pytest.mark.anyio
async def test_while_nobody_can_hear_it_the_machine_is_not_looked_at() -> None:
    slow = Slow()
    sampler = Sampler(slow, dict, lambda name, value: None, wanted=lambda: False)
    running = asyncio.get_running_loop().create_task(sampler.run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert slow.looks == 0
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("seconds", [None, "1", -1, float("nan"), float("inf"), [], {}])
def test_a_watch_for_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(RequestError):
        watch_seconds({"seconds": seconds})
    assert EVENT == "hardware"
