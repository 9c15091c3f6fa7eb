"""The environment of the process that listens at a port of this machine, where we may read it.

Linux shows a process's environment to its own user and to root. An inference server that runs as
another user, as Ollama's service does, keeps its settings to itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from .socket_diag import listeners

MAX_ENVIRONMENT_BYTES: Final = 256 << 10  # of a process; the usual ones have some KiB


def environment_of_listener(port: int) -> dict[str, str]:
    """Return the environment of whoever listens at `port`; {} where it can't be read.

    Looks at the open files of all processes, which takes milliseconds: not for the event loop.
    """
    try:
        inodes = {f"socket:[{end.inode}]" for end in listeners(port)}
    except OSError:
        return {}  # another system, or a sandbox
    return next((_environment(process) for process in _processes_with(inodes)), {})


def _processes_with(inodes: set[str]) -> Iterator[Path]:
    """The processes that have one of these sockets open, of those that we may look at."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if any(os.readlink(file) in inodes for file in (process / "fd").iterdir()):
                yield process


def _environment(process: Path) -> dict[str, str]:
    try:
        with (process / "environ").open("rb") as file:
            entries = file.read(MAX_ENVIRONMENT_BYTES).split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}
