"""Servers that outlived their node: ended before the next one starts its own.

On Linux the kernel ends a server with its node (`launch`). This is for the rest: other systems, and
what a configured wrapper started beside itself. Every server, and whatever it starts, carries its
node's folder in the environment: a mark that outlives parents and groups, and that a stranger with
a recycled PID does not have.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import psutil

log = logging.getLogger("wai.node.managed")

MARK: Final = "WAI_MANAGED_BY"
ENDED_WITHIN_S: Final = 5.0  # a driver may take seconds to give a killed process's GPU memory back


def mark(folder: Path) -> dict[str, str]:
    """What a server of the node with this `folder` has in its environment."""
    return {MARK: str(folder.resolve())}


def end_orphans(folder: Path) -> int:
    """End what an earlier run left behind, and wait until it is gone; how many there were."""
    marked = mark(folder)[MARK]
    found = [process for process in psutil.process_iter() if _carries(process, marked)]
    for process in found:
        try:
            process.kill()
        except psutil.Error as error:
            log.warning("a server of an earlier run can't be ended: %s", error)
    _, left = psutil.wait_procs(found, timeout=ENDED_WITHIN_S)
    if left:
        log.warning("servers of an earlier run are still there: %s", [p.pid for p in left])
    return len(found)


def _carries(process: psutil.Process, marked: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == marked
    except (psutil.Error, OSError):
        return False  # it has just ended, or is another user's
