"""NVIDIA's library as nvidia-ml-py shows it, at its worst: each figure of a card may be an error.

It raises the errors of the real module, which is installed here without a driver.
"""

# ruff: noqa: N802 - the fake has the names of NVML
from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Final

import pynvml

LOST: Final = pynvml.NVML_ERROR_GPU_IS_LOST
NOT_SUPPORTED: Final = pynvml.NVML_ERROR_NOT_SUPPORTED
NO_PERMISSION: Final = pynvml.NVML_ERROR_NO_PERMISSION
UNKNOWN: Final = pynvml.NVML_ERROR_UNKNOWN
MISMATCH: Final = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH

GOOD: Final[dict[str, Any]] = {
    "handle": 0,
    "name": "NVIDIA H200",
    "memory": (150 << 30, 24 << 30),
    "use": 87,
    "heat": 64,
    "power": 412_000,
    "limit": 700_000,
    "compute": [(41, 20 << 30), (7, 4 << 30)],
    "graphics": [],
}


class Errors(int):
    """The number of an error that is raised in place of an answer."""


class FakeNvml(types.ModuleType):
    """`cards`: what each one answers; a value that is an `Errors` is raised. `init`: likewise."""

    def __init__(self, *cards: dict[str, Any], init: int = 0) -> None:
        super().__init__("pynvml")
        self.cards = [{**GOOD, **card} for card in cards]
        self.init, self.count_error = init, 0
        self.opened = self.closed = 0
        self.NVMLError = pynvml.NVMLError
        self.NVML_ERROR_GPU_IS_LOST = LOST
        self.NVML_ERROR_LIB_RM_VERSION_MISMATCH = MISMATCH
        self.NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def nvmlInit(self) -> None:
        if self.init:
            raise pynvml.NVMLError(self.init)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.closed += 1

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetCount(self) -> int:
        if self.count_error:
            raise pynvml.NVMLError(self.count_error)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._answer(index, "handle")
        return index

    def _answer(self, index: int, name: str) -> Any:
        value = self.cards[index][name]
        if isinstance(value, Errors):
            raise pynvml.NVMLError(int(value))
        return value

    def nvmlDeviceGetName(self, handle: int) -> Any:
        return self._answer(handle, "name")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        total, used = self._answer(handle, "memory")
        return types.SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return types.SimpleNamespace(gpu=self._answer(handle, "use"), memory=3)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._answer(handle, "heat")

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._answer(handle, "power")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> Any:
        return self._answer(handle, "limit")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return [_process(*row) for row in self._answer(handle, "compute")]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> Any:
        return [_process(*row) for row in self._answer(handle, "graphics")]


def _process(pid: int, used: int | None) -> types.SimpleNamespace:
    return types.SimpleNamespace(pid=pid, usedGpuMemory=used)


SHIM: Final = """\
import importlib.util, pathlib, sys
here = pathlib.Path(__file__).resolve()
paths = [pathlib.Path(entry, "pynvml.py").resolve() for entry in sys.path]
real = next(path for path in paths if path.exists() and path != here)
spec = importlib.util.spec_from_file_location("pynvml", real)
module = sys.modules["pynvml"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.path.append({root!r})
from tests.harness.fake_nvml import LOST, NO_PERMISSION, Errors, FakeNvml
sys.modules["pynvml"] = FakeNvml(*{cards})
"""


def write_shim(folder: Path, cards: str) -> None:
    """Write a `pynvml` into `folder` for a process that has it in PYTHONPATH: one that imports it
    gets the fake with these `cards`, an expression."""
    root = str(Path(__file__).parents[2])
    (folder / "pynvml.py").write_text(SHIM.format(root=root, cards=cards))
