"""What kinds of faults need of this machine, and how to get it without root.

The program starts itself again in new network and mount namespaces, directly as root, else in
a user namespace if the kernel allows it. Everything that is made there (devices, addresses, mounts)
disappears when the program ends, and the machine's own network is never changed.
"""

from __future__ import annotations

import enum
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from tests.harness.packet_link import TUN_DEVICE

_INSIDE: Final = "WAI_CHAOS_NAMESPACES"
# A new /run: `ip netns` keeps its names there, and without root the old one is not writable.
_SET_UP: Final = "mount -t tmpfs tmpfs /run && ip link set lo up"


class Need(enum.Enum):
    """A requirement of a kind of fault."""

    NAMESPACES = "network and mount namespaces"
    TUN = "a TUN device"


def enter_namespaces(argv: Sequence[str]) -> None:
    """Replace this process by `argv` in new namespaces; return if that is impossible or done."""
    if _INSIDE not in os.environ and why_no_namespaces() is None:
        inner = f"{_SET_UP} && exec {shlex.join(argv)}"
        sys.stdout.flush()
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", [*_unshare(), "sh", "-c", inner])


def missing(need: Need) -> str | None:
    """Return why `need` is not met; None if it is."""
    match need:
        case Need.NAMESPACES:
            if _INSIDE in os.environ:
                return None
            return why_no_namespaces() or "the program was not started by `make chaos`"
        case Need.TUN:
            return (
                None if os.access(TUN_DEVICE, os.R_OK | os.W_OK) else f"no access to {TUN_DEVICE}"
            )


def why_no_namespaces() -> str | None:
    """Return why this machine provides no namespaces; None if it does."""
    for program in ("unshare", "ip", "mount"):
        if shutil.which(program) is None:
            return f"there is no `{program}`"
    tried = subprocess.run(
        [*_unshare(), "sh", "-c", _SET_UP], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else tried.stderr.strip() or "`unshare` failed"


def _unshare() -> list[str]:
    as_root = () if os.geteuid() == 0 else ("--map-root-user",)
    return ["unshare", *as_root, "--net", "--mount"]
