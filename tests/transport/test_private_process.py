"""The process of a daemon is not dumpable, but its children are."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")

# The owner of /proc/PID/environ is root where a process can't be dumped.
_PROGRAM: Final = """
import ctypes, os, resource, subprocess, sys
import psutil
from wai_transport.private_process import keep_memory_private
keep_memory_private()
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, "dumpable"
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
me = psutil.Process()
assert os.listdir("/proc/self/fd") and me.num_fds() and me.memory_info().rss
open("/proc/self/net/tcp").read()
child = "import ctypes, resource; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)," \\
    " *resource.getrlimit(resource.RLIMIT_CORE))"
print(subprocess.check_output([sys.executable, "-c", child], text=True), end="")
"""


def test_a_daemon_is_not_dumped_and_its_children_are_readable_for_their_user() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 0 0\n", "")
