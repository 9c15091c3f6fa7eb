"""Gauges of the nodes' machines, for `GET /metrics`.

Labels are bounded: a node's name, a GPU's number (below 16) and the deployed models that run now
(16 of each node at most). Only what was told lately is there, and only what its driver tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from wai_api.hardware import GpuNow, MachineNow

from .metric_lines import Labels, head, line

_Machines = Sequence[tuple[str, MachineNow]]
_Values = list[tuple[Labels, float | None]]

_OF_GPUS: Final[tuple[tuple[str, str, Callable[[GpuNow], float | None]], ...]] = (
    (
        *("wai_node_gpu_use_ratio", "The part of the time in which the GPU works."),
        lambda gpu: None if gpu.use is None else gpu.use / 100.0,
    ),
    ("wai_node_gpu_memory_used_bytes", "The GPU's memory in use.", lambda gpu: gpu.used),
    ("wai_node_gpu_memory_bytes", "The GPU's memory.", lambda gpu: gpu.total),
    ("wai_node_gpu_temperature_celsius", "The GPU's temperature.", lambda gpu: gpu.temperature),
    ("wai_node_gpu_power_watts", "What the GPU draws.", lambda gpu: gpu.power),
    (
        *("wai_node_gpu_lost", "1: the GPU does not answer."),
        lambda gpu: int(bool(gpu.problem)),
    ),
)
_OF_MACHINES: Final[tuple[tuple[str, str, Callable[[MachineNow], float | None]], ...]] = (
    (
        *("wai_node_cpu_use_ratio", "The part of the processor's time that is used."),
        lambda machine: None if machine.cpu is None else machine.cpu / 100.0,
    ),
    ("wai_node_ram_used_bytes", "RAM in use.", lambda machine: machine.ram_used),
    ("wai_node_ram_bytes", "RAM that the node may use.", lambda machine: machine.ram_total or None),
)


def machine_lines(machines: _Machines) -> Iterator[str]:
    """Every gauge of every machine."""
    for name, help_text, of_machine in _OF_MACHINES:
        values: _Values = [((("node", node),), of_machine(now)) for node, now in machines]
        yield from _gauge(name, help_text, values)
    for name, help_text, of_gpu in _OF_GPUS:
        values = [
            ((("node", node), ("gpu", str(number))), of_gpu(gpu))
            for node, now in machines
            for number, gpu in enumerate(now.gpus)
        ]
        yield from _gauge(name, help_text, values)
    for kind in ("gpu", "ram"):
        name = f"wai_node_model_{kind}_bytes"
        values = [
            ((("node", node), ("model", model)), size)
            for node, now in machines
            for model, size in _by_model(now, kind).items()
        ]
        yield from _gauge(name, f"What the servers of a deployed model hold ({kind}).", values)


def _by_model(machine: MachineNow, kind: str) -> dict[str, int]:
    """The memory of each model's servers: two of one run while it is swapped."""
    found: dict[str, int] = {}
    for process in machine.processes:
        size = process.gpu if kind == "gpu" else process.ram
        if size is not None:
            found[process.model] = found.get(process.model, 0) + size
    return found


def _gauge(name: str, help_text: str, values: _Values) -> Iterator[str]:
    known = [(labels, value) for labels, value in values if value is not None]
    if known:
        yield from head(name, help_text, "gauge")
        yield from (line(name, labels, value) for labels, value in known)
