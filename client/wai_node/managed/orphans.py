"""Servers that outlived their node: remembered in a file each, ended at the next start.

On Linux the kernel ends them with the node (`launch`); this is for the rest, and for a server that
was started through a wrapper.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Final

import psutil

log = logging.getLogger("wai.node.managed")

SUFFIX: Final = ".pid"
_SAME_START_S: Final = 1.0  # a process's start time is read with the clock tick's resolution


def remember(folder: Path, pid: int) -> Path:
    """Note a server's process group; returns the file, to be deleted when it has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pid}{SUFFIX}"
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = 0.0
    path.write_text(json.dumps({"pid": pid, "started": started}))
    return path


def end_orphans(folder: Path) -> int:
    """End what an earlier run left behind; how many there were. A PID that now belongs to another
    process is left alone."""
    ended = 0
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            note = json.loads(path.read_text())
            pid, started = int(note["pid"]), float(note["started"])
            same = abs(psutil.Process(pid).create_time() - started) < _SAME_START_S
            if same and os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
                ended += 1
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
        except (OSError, ValueError, KeyError, TypeError, psutil.Error) as error:
            log.warning("the note %s of an earlier server can't be used: %s", path, error)
        path.unlink(missing_ok=True)
    return ended
