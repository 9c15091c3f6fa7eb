"""Execute an inference server that ends with the node: `python -I launch.py PID COMMAND …`.

It asks the kernel for SIGKILL when the parent ends (Linux only; elsewhere `orphans` cleans up after
a restart), checks that PID is still the parent, and then replaces itself with COMMAND. A
`preexec_fn` would do the same in a forked copy of the running node, which is not safe with threads.

It is run as a file and isolated (-I), and imports the standard library alone, so that no module
comes from the working directory or from PYTHONPATH.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>


def main() -> None:
    """Run. argv: the parent's PID, then the command to execute."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the node that started this has ended")
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"{command[0]} can't be started: {error.strerror}")


if __name__ == "__main__":
    main()
