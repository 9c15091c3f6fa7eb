"""Read the sizes of llama-server's buffers from its log, and correct later estimates by them.

The log also contains the model file's metadata, so the figures may be forged. They are limited
here, and used for estimates of the same repository's models only.

Pure: `read_buffers` turns lines into figures, and `learn` turns figures into a `Correction`, which
the supervisor stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from .estimate import Correction, Estimate

# `load_tensors:   CPU_Mapped model buffer size =    11.01 MiB`; the device's name may be "CUDA0"
_LINE: Final = re.compile(
    r"(?:(\w{1,64}):\s+)?(\S{1,64})\s+(model|LoRA|KV|RS|output|compute)\s+buffer size"
    r"\s*=\s*(\d{1,9}\.?\d{0,6}) MiB"
)
# `load_hparams: model size:         6.63 MiB`: a projector's weights
_PROJECTOR: Final = re.compile(r"\bmodel size:\s+(\d{1,9}\.?\d{0,6}) MiB")
_MIB: Final = 1 << 20
# Weights that were copied from the mapped file into an order for the processor (AMX, repacked
# blocks). The log names both; the system can take back the file's pages after the copy.
_COPIED: Final = re.compile(r"AMX|CPU_(?!Mapped)\w+")
_MAPPED: Final = "CPU_Mapped"
# This line ends the server's dry run: with --fit it builds the model twice.
_FIT_DONE: Final = re.compile(r"fitting params to (?:free|device) memory took")
_PIPELINED: Final = "pipeline parallelism enabled"
_CONTEXT: Final = "constructing llama_context"
MAX_DEVICES: Final = 64
MIN_FACTOR, MAX_FACTOR = 0.5, 4.0  # beyond these we misread the log; GPUStack saw 4
# The ratio of smaller buffers is too coarse: the log rounds to 0.01 MiB.
MIN_LEARNT_BYTES: Final = 8 << 20


class SeenBuffers(msgspec.Struct, frozen=True):
    """Bytes by kind, summed over the devices, which `devices` names.

    `pipelined`: its GPUs work on several batches at a time. `copied`: how many bytes of the weights
    are copies of mapped ones; if there are any, `weights` is a lower bound.
    """

    weights: int
    cache: int
    compute: int
    devices: tuple[str, ...]
    copied: int = 0
    pipelined: bool = False
    by_device: tuple[int, ...] = ()
    """The bytes on each of `devices`."""

    @property
    def total(self) -> int:
        """The sum of all buffers."""
        return self.weights + self.cache + self.compute

    def taken(self, weights: int) -> int:
        """The sum without what is logged twice of a model that is on GPUs in part, whose tensors
        take `weights`: of a mapped file all counts that is between two tensors in RAM."""
        return min(self.weights, weights) + self.cache + self.compute


def read_buffers(lines: Iterable[str]) -> SeenBuffers | None:
    """Add up the buffers in a log; None if it names no model buffer (the model was not loaded).

    Of weights that are mapped from the file and copied for the processor the larger sum counts.
    """
    sums = dict.fromkeys(("model", "LoRA", "KV", "RS", "output", "compute"), 0.0)
    reserved: dict[tuple[str, str], float] = {}
    mapped = copied = 0.0
    projector = 0.0
    devices: dict[str, float] = {}
    pipelined = False
    for line in lines:
        pipelined = pipelined or _PIPELINED in line
        if _FIT_DONE.search(line):
            sums = dict.fromkeys(sums, 0.0)
            mapped = copied = 0.0
            devices.clear()
            reserved.clear()
        if _CONTEXT in line:
            reserved.clear()
        match = _LINE.search(line)
        if match is None:
            if found := _PROJECTOR.search(line):
                projector = float(found[1])
            continue
        who, device, kind, size = match[1] or "", match[2], match[3], float(match[4])
        sums[kind] += size
        if len(devices) < MAX_DEVICES or device in devices:
            devices[device] = devices.get(device, 0.0) + size
        if kind == "model":
            mapped += size * (device == _MAPPED)
            copied += size * bool(_COPIED.fullmatch(device))
        elif kind == "compute" and len(reserved) < MAX_DEVICES:
            # an adapter has the same context reserve once more, in place of what it had
            before = reserved.get((who, device), 0.0)
            sums[kind] -= before
            devices[device] = devices.get(device, 0.0) - before
            reserved[who, device] = size
    if not sums["model"]:
        return None
    return SeenBuffers(
        weights=int((sums["model"] + sums["LoRA"] - min(mapped, copied) + projector) * _MIB),
        cache=int((sums["KV"] + sums["RS"]) * _MIB),
        compute=int((sums["compute"] + sums["output"]) * _MIB),
        devices=tuple(devices),
        copied=int(min(mapped, copied) * _MIB),
        pipelined=pipelined,
        by_device=tuple(int(size * _MIB) for size in devices.values()),
    )


def learn(seen: SeenBuffers, estimated: Estimate, *, spread: bool = False) -> Correction:
    """Return the ratio of seen to estimated bytes for each kind of buffer, within limits.

    `spread`: some layers are on GPUs. Then the weights teach nothing (see `SeenBuffers.taken`).
    """
    return Correction(
        weights=1.0 if seen.copied or spread else _factor(seen.weights, estimated.weights),
        cache=_factor(seen.cache, estimated.cache),
        compute=_factor(seen.compute, estimated.compute),
    )


def _factor(seen: int, estimated: int) -> float:
    if seen < MIN_LEARNT_BYTES or estimated <= 0:
        return 1.0
    return min(MAX_FACTOR, max(MIN_FACTOR, seen / estimated))
