"""Read the limits that control groups set for this process's memory and CPU time (Linux).

A container, or a service with `MemoryMax=`, sees the whole machine in /proc, but is killed when it
exceeds its own limit. Both versions are read: 2 (`memory.max`, `cpu.max`) and 1
(`memory.limit_in_bytes`, `cpu.cfs_*`), as the kernel's admin-guide/cgroup-v2 and cgroup-v1/memory
describe them. The limits of all visible ancestors apply. A value that is absent, "max" or invalid
is no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path("/")  # tests use another folder
_MEMBERSHIP: Final = "proc/self/cgroup"
_MOUNT: Final = "sys/fs/cgroup"  # where systemd and every container runtime mount it
_MAX_LIST_BYTES: Final = 1 << 16  # /proc/self/cgroup has some 15 lines, memory.stat some 60
_MAX_VALUE_BYTES: Final = 64  # room for two 64-bit numbers
_MAX_DEPTH: Final = 64  # of groups in groups: Kubernetes nests five
_MAX_DIGITS: Final = 20  # of a 64-bit number
_ABSURD_BYTES: Final = 1 << 60  # version 1 reports "no limit" as nearly 2^63


class _MemoryFiles(msgspec.Struct, frozen=True):
    """The file names of a version, and its rows in `memory.stat`.

    `cached` minus `mapped` bytes are reclaimable. In version 1 only the `total_` rows include the
    group's children.
    """

    limit: str
    used: str
    cached: tuple[str, ...]
    mapped: str


_V1: Final = _MemoryFiles(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
    "total_mapped_file",
)
_V2: Final = _MemoryFiles(
    "memory.max", "memory.current", ("active_file", "inactive_file"), "file_mapped"
)


class MemoryLimit(msgspec.Struct, frozen=True):
    """The limit of one group: for all its processes together, and how much of it is free now."""

    limit_bytes: int
    free_bytes: int


def memory_limits(root: Path = ROOT) -> list[MemoryLimit]:
    """Return the limits of this process's group and of its ancestors."""
    found = []
    for files, controller in ((_V2, ""), (_V1, "memory")):
        for folder in _groups(root, controller):
            limit = _number(_read(folder / files.limit, _MAX_VALUE_BYTES))
            if limit is not None and 0 < limit < _ABSURD_BYTES:
                free = max(0, limit - _used_bytes(folder, files))
                found.append(MemoryLimit(limit, min(limit, free)))
    return found


def cpu_limit(root: Path = ROOT) -> float | None:
    """Return how many CPUs' time this process may use; None without a limit."""
    found = [_quota(_read(group / "cpu.max", _MAX_VALUE_BYTES)) for group in _groups(root, "")]
    for folder in _groups(root, "cpu"):
        quota = _read(folder / "cpu.cfs_quota_us", _MAX_VALUE_BYTES)  # -1: none
        found.append(_quota(f"{quota} {_read(folder / 'cpu.cfs_period_us', _MAX_VALUE_BYTES)}"))
    return min((quota for quota in found if quota is not None), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group in a hierarchy ("": version 2) and its ancestors.

    In a container the path may be the host's, while the container's own group is mounted as the
    top. Folders that do not exist are harmless, since reading their files fails.
    """
    mount = root / _MOUNT / controller
    for line in _read(root / _MEMBERSHIP, _MAX_LIST_BYTES).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        named = controller in controllers.split(",") if controller else not controllers
        if not named or (number == "0") != (not controller):
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside this namespace: only its top is visible
            parts = []
        for depth in range(min(len(parts), _MAX_DEPTH), -1, -1):
            yield mount.joinpath(*parts[:depth])
        return


def _used_bytes(folder: Path, files: _MemoryFiles) -> int:
    """Return the bytes that the kernel can't reclaim.

    The cache of files that no process has mapped is reclaimable; a model that was just downloaded
    fills its group with such pages.
    """
    used = _number(_read(folder / files.used, _MAX_VALUE_BYTES)) or 0
    rows = {}
    for line in _read(folder / "memory.stat", _MAX_LIST_BYTES).splitlines():
        name, _, value = line.partition(" ")
        rows[name] = _number(value) or 0
    cached = sum(rows.get(name, 0) for name in files.cached)
    return used - max(0, cached - rows.get(files.mapped, 0))


def _quota(text: str) -> float | None:
    """Parse "QUOTA PERIOD", both in microseconds; return their ratio."""
    quota, _, period = text.strip().partition(" ")
    time, every = _number(quota), _number(period)
    return time / every if time and every else None


def _number(text: str) -> int | None:
    """Parse a whole number without a sign; None for anything else."""
    text = text.strip()
    plain = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    return int(text) if plain else None


def _read(path: Path, limit_bytes: int) -> str:
    """Return the start of a file; "" if it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes).decode("ascii", "replace")
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return ""
