"""What llama-server says in its log about the buffers it took, and what that teaches.

A model file's metadata stands in that log too, so the figures may be forged: they are bounded here,
and serve for nothing but estimates of the same repository's models.

Pure: lines in, figures out. `learn` turns figures into a `Correction` for the next estimate. It
reads no file and keeps nothing; the supervisor stores what was learnt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .fit import Correction, Estimate

# `load_tensors:   CPU_Mapped model buffer size =    11.01 MiB`; the device's name may be "CUDA0"
_LINE: Final = re.compile(
    r"(\S{1,64})\s+(model|KV|RS|output|compute)\s+buffer size\s*=\s*(\d{1,9}\.?\d{0,6}) MiB"
)
_MIB: Final = 1 << 20
# Weights in an order that suits the processor (AMX, repacked blocks), copied from those mapped from
# the file. Both are printed; the file's pages are nobody's once copied, and are given back.
_COPIED: Final = re.compile(r"AMX|CPU_(?!Mapped)\w+")
_MAPPED: Final = "CPU_Mapped"
# A line that makes the server's own dry run apart from its real one: --fit builds the model twice.
_FIT_DONE: Final = re.compile(r"fitting params to (?:free|device) memory took")
MAX_DEVICES: Final = 64
MIN_FACTOR, MAX_FACTOR = 0.5, 4.0  # a stranger ratio is a log that we misread; GPUStack saw 4
# A tiny buffer's ratio says nothing: the log rounds to 0.01 MiB.
MIN_LEARNT_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class SeenBuffers:
    """Bytes by kind, over all devices; `devices` names those that hold any of them. `copied`: so
    many of the weights are copies of what is mapped from the file, and `weights` is a lower bound.
    """

    weights: int
    cache: int
    compute: int
    devices: tuple[str, ...]
    copied: int = 0

    @property
    def total(self) -> int:
        """All buffers together."""
        return self.weights + self.cache + self.compute


def read_buffers(lines: Iterable[str]) -> SeenBuffers | None:
    """Add up a log's buffers; None where it names no model's buffer (it was not loaded).

    What is mapped from the file may have been copied for the processor: the larger of both counts.
    """
    sums = {"model": 0.0, "KV": 0.0, "RS": 0.0, "output": 0.0, "compute": 0.0}
    mapped = copied = 0.0
    devices: dict[str, None] = {}
    for line in lines:
        if _FIT_DONE.search(line):
            sums = dict.fromkeys(sums, 0.0)
            mapped = copied = 0.0
            devices.clear()
        match = _LINE.search(line)
        if match is None:
            continue
        sums[match[2]] += float(match[3])
        if match[2] == "model":
            mapped += float(match[3]) * (match[1] == _MAPPED)
            copied += float(match[3]) * bool(_COPIED.fullmatch(match[1]))
        if len(devices) < MAX_DEVICES:
            devices[match[1]] = None
    if not sums["model"]:
        return None
    return SeenBuffers(
        weights=int((sums["model"] - min(mapped, copied)) * _MIB),
        cache=int((sums["KV"] + sums["RS"]) * _MIB),
        compute=int((sums["compute"] + sums["output"]) * _MIB),
        devices=tuple(devices),
        copied=int(min(mapped, copied) * _MIB),
    )


def learn(seen: SeenBuffers, estimated: Estimate) -> Correction:
    """How wrong an uncorrected estimate was, kind by kind, within sane bounds."""
    return Correction(
        weights=1.0 if seen.copied else _factor(seen.weights, estimated.weights),
        cache=_factor(seen.cache, estimated.cache),
        compute=_factor(seen.compute, estimated.compute),
    )


def _factor(seen: int, estimated: int) -> float:
    if seen < MIN_LEARNT_BYTES or estimated <= 0:
        return 1.0
    return min(MAX_FACTOR, max(MIN_FACTOR, seen / estimated))
