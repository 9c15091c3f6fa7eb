"""Read from /proc the CPU seconds and resident memory of processes and their children."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_OTHER_FILES: Final = 1000
MANY_FILES: Final = 100_000  # ten thousand streams, two sockets each, with room


def allow_many_files() -> None:
    """Raise this process's limit of open files to the maximum; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, MANY_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_streams() -> int:
    """Return how many streams a proxy can carry here: each takes two sockets."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES) // 2


def parse_stat(stat: str) -> tuple[int, float]:
    """(parent's id, CPU seconds in user and system) from the text of /proc/PID/stat.

    The command's name may hold spaces and brackets, so fields are counted from the last bracket.
    """
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def family(pids: list[int]) -> list[int]:
    """Return `pids` and all their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent, _ = parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # gone between the listing and the reading
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = list(pids)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds used so far by `pids` together; an ended process counts as 0."""
    return sum(_read_cpu_s(pid) for pid in pids)


def rss_bytes(pids: list[int]) -> int:
    """Return the resident bytes of `pids` together (shared pages are counted in each)."""
    return sum(_read_rss_bytes(pid) for pid in pids)


def _read_cpu_s(pid: int) -> float:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())[1]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def _read_rss_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0
