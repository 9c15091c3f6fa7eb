"""End servers that outlived an earlier run of the node, before this run starts its own.

On Linux the kernel ends a server together with its node (`launch`). This module handles other
systems, and processes that a configured wrapper script started. Every server and its children have
the node's folder in their environment. This mark outlives parents and process groups, and an
unrelated process with a recycled PID does not have it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import psutil

log = logging.getLogger("wai.node.managed")

MARK: Final = "WAI_MANAGED_BY"
ENDED_WITHIN_S: Final = 5.0  # a driver may take seconds to free a killed process's GPU memory


def mark(folder: Path) -> dict[str, str]:
    """Return the environment variable that marks the servers of the node with this `folder`."""
    return {MARK: str(folder.resolve())}


def end_orphans(folder: Path) -> int:
    """End the servers of an earlier run and wait until they have ended; return their number."""
    marked = mark(folder)[MARK]
    found = [process for process in psutil.process_iter() if _carries(process, marked)]
    for process in found:
        try:
            process.kill()
        except psutil.Error as error:
            log.warning("can't end a server of an earlier run: %s", error)
    _, left = psutil.wait_procs(found, timeout=ENDED_WITHIN_S)
    if left:
        log.warning("servers of an earlier run still run: PIDs %s", [p.pid for p in left])
    return len(found)


def _carries(process: psutil.Process, marked: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == marked
    except (psutil.Error, OSError):
        return False  # it has just ended, or belongs to another user
