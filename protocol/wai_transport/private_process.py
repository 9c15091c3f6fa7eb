"""Keep the memory of this process (keys, prompts) out of core dumps and away from other processes.

Children inherit the limit on core dumps. They become dumpable again when they execute another
program. So `/proc/PID` of an inference server is readable for its user, which
`wai_node.managed` needs in order to find servers that an earlier run left behind.
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
    """Disable core dumps; on Linux also keep other processes of this user from attaching."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            _log.warning("this process stays dumpable: %s", os.strerror(ctypes.get_errno()))
