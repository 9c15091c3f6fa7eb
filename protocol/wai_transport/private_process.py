"""Keeps what this process has in memory (keys, prompts) out of core dumps and of other processes.

Its children inherit the limit on core dumps. They are dumpable again once they run another program,
which leaves `/proc/PID` of a model's server readable for its own user, as `managed.orphans` needs.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # <linux/prctl.h>

_log = logging.getLogger("wai")


def keep_memory_private() -> None:
    """No core dump from now on; on Linux no other process of this user can attach either."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            _log.warning("this process stays dumpable: %s", os.strerror(ctypes.get_errno()))
