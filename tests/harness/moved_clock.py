"""Change the wall clock of a Python process that a test starts.

A `sitecustomize` module, found by way of PYTHONPATH, adds an offset to `time.time` and
`time.time_ns`. The offset is in a small file that is mapped into memory, so that it can change at
any moment. Monotonic time is not changed, as on a machine whose clock is set. Nor are times that C
code reads (`datetime.now`, SQLite's `'now'`, the times of files). libfaketime
would, but makes `time.sleep` fail with EINVAL in Python 3.11.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_OFFSET: Final = struct.Struct("d")
_SITECUSTOMIZE: Final = '''\
"""Moves this process's wall clock; see tests/harness/moved_clock.py."""

import mmap, pathlib, struct, time

with pathlib.Path(__file__).with_name("offset").open("rb") as file:
    offset = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
real_time, real_time_ns = time.time, time.time_ns
time.time = lambda: real_time() + struct.unpack("d", offset)[0]
time.time_ns = lambda: real_time_ns() + int(struct.unpack("d", offset)[0] * 1e9)
'''


@dataclass(frozen=True, slots=True)
class MovedClock:
    """Made by `moved_clock`."""

    folder: Path

    @property
    def command(self) -> tuple[str, ...]:
        """What to put in front of a command, to have it run with this clock."""
        paths = [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return ("env", f"PYTHONPATH={os.pathsep.join(paths)}")

    def move(self, offset_s: float) -> None:
        """Set the clock to `offset_s` after the real time; 0 sets it right."""
        with (self.folder / "offset").open("r+b") as file:  # in place: it is mapped elsewhere
            file.write(_OFFSET.pack(offset_s))


def moved_clock(folder: Path) -> MovedClock:
    """A clock that is right at first, with its files in `folder`, which is made."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    (folder / "offset").write_bytes(_OFFSET.pack(0.0))
    return MovedClock(folder)
