"""Have a relay believe that its kernel calls the clock synchronised, or not, as a test says.

The real answer (adjtimex) is the machine's, and only root may change it. A `sitecustomize` module,
found by way of PYTHONPATH, replaces the one function that asks. It reads a file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SITECUSTOMIZE: Final = '''\
"""Answers for the kernel; see tests/harness/kernel_clock.py."""

import pathlib

import wai_relay.health.clock

says = pathlib.Path(__file__).with_name("synchronised")
wai_relay.health.clock.kernel_says_synchronised = says.exists
'''


@dataclass(frozen=True, slots=True)
class KernelClock:
    """Made by `kernel_clock`."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """What to start a relay with."""
        paths = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    def say(self, *, synchronised: bool) -> None:
        """What the kernel says from now on."""
        if synchronised:
            (self.folder / "synchronised").touch()
        else:
            (self.folder / "synchronised").unlink()


def kernel_clock(folder: Path) -> KernelClock:
    """A clock that is synchronised at first, with its files in `folder`, which is made."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    made = KernelClock(folder)
    made.say(synchronised=True)
    return made
