"""What control groups leave this process of a machine's memory and processors (Linux).

A container, or a service with `MemoryMax=`, sees the whole machine in /proc and is killed beyond
less. Version 2 (`memory.max`, `cpu.max`) and version 1 (`memory.limit_in_bytes`, `cpu.cfs_*`), as
the kernel's admin-guide/cgroup-v2 and cgroup-v1/memory describe them. A limit of any ancestor
counts, as far up as it can be seen. What is absent, says "max", or makes no sense is no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")  # tests have another one
_MEMBERSHIP: Final = "proc/self/cgroup"
_MOUNT: Final = "sys/fs/cgroup"  # where systemd and every container runtime mount it
_MAX_LIST_BYTES: Final = 1 << 16  # /proc/self/cgroup has some 15 lines, memory.stat some 60
_MAX_VALUE_BYTES: Final = 64  # two numbers of 64 bits
_MAX_DEPTH: Final = 64  # of groups in groups: Kubernetes nests five
_MAX_DIGITS: Final = 20  # of 64 bits
_ABSURD_BYTES: Final = 1 << 60  # version 1 says "no limit" by nearly 2^63


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    """What a version calls things; `cached` less `mapped` of its `memory.stat` can be taken back.

    Version 1 counts a group's children in the `total_` rows alone.
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


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One group's bound: `limit_bytes` for all its processes, `free_bytes` of them free now."""

    limit_bytes: int
    free_bytes: int


def memory_limits(root: Path = ROOT) -> list[MemoryLimit]:
    """The bounds of this process's group and of those above it; empty where there are none."""
    found = []
    for files, controller in ((_V2, ""), (_V1, "memory")):
        for folder in _groups(root, controller):
            limit = _number(_read(folder / files.limit, _MAX_VALUE_BYTES))
            if limit is not None and 0 < limit < _ABSURD_BYTES:
                free = max(0, limit - _used_bytes(folder, files))
                found.append(MemoryLimit(limit, min(limit, free)))
    return found


def cpu_limit(root: Path = ROOT) -> float | None:
    """How many processors' time this process may take; None: as many as there are."""
    found = [_quota(_read(group / "cpu.max", _MAX_VALUE_BYTES)) for group in _groups(root, "")]
    for folder in _groups(root, "cpu"):
        quota = _read(folder / "cpu.cfs_quota_us", _MAX_VALUE_BYTES)  # -1: none
        found.append(_quota(f"{quota} {_read(folder / 'cpu.cfs_period_us', _MAX_VALUE_BYTES)}"))
    return min((quota for quota in found if quota is not None), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's group in a hierarchy ("": version 2), then those above it.

    In a container the list may name the group as the host sees it, while the container's own is
    mounted as the top one: folders that are not there are harmless, since they have no files.
    """
    mount = root / _MOUNT / controller
    for line in _read(root / _MEMBERSHIP, _MAX_LIST_BYTES).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        named = controller in controllers.split(",") if controller else not controllers
        if not named or (number == "0") != (not controller):
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of this namespace: only its top can be seen
            parts = []
        for depth in range(min(len(parts), _MAX_DEPTH), -1, -1):
            yield mount.joinpath(*parts[:depth])
        return


def _used_bytes(folder: Path, files: _MemoryFiles) -> int:
    """What can't be taken back: the cache of files that no process has mapped can. A model that
    was just downloaded fills its group with such pages."""
    used = _number(_read(folder / files.used, _MAX_VALUE_BYTES)) or 0
    rows = {}
    for line in _read(folder / "memory.stat", _MAX_LIST_BYTES).splitlines():
        name, _, value = line.partition(" ")
        rows[name] = _number(value) or 0
    cached = sum(rows.get(name, 0) for name in files.cached)
    return used - max(0, cached - rows.get(files.mapped, 0))


def _quota(text: str) -> float | None:
    """Of "QUOTA PERIOD", both in microseconds."""
    quota, _, period = text.strip().partition(" ")
    time, every = _number(quota), _number(period)
    return time / every if time and every else None


def _number(text: str) -> int | None:
    """A whole number without a sign; None for all else."""
    text = text.strip()
    plain = text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
    return int(text) if plain else None


def _read(path: Path, limit_bytes: int) -> str:
    """The start of a file; "" where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(limit_bytes).decode("ascii", "replace")
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return ""
