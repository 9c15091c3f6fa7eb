"""Whether this machine's clock is kept right, as its kernel says (adjtimex, Linux only).

The kernel calls the clock unsynchronised when nothing has set it right for about nine hours, or
when the program that did so said so at its end. A virtual machine whose host keeps its clock, and a
container without such a program, look the same although nothing is wrong. So only the loss of what
was there is a problem: this boot's clock was synchronised once, and is no longer.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from wai_api.health import ProblemView

from .problem import RELAY, problem

SYNCHRONISED_ONCE: Final = Path("/run/systemd/timesync/synchronized")
"""systemd-timesyncd makes it when it has set the clock for the first time since the boot."""

MAX_SKEW_S: Final = 60.0
"""More breaks sign-ins at providers, and makes certificates and invites end at the wrong time."""

_UNSYNCHRONISED: Final = 0x40  # STA_UNSYNC
_TIMEX_BYTES: Final = 1024  # struct timex has 208
_STATUS: Final = struct.Struct("@I4li")
"""Its beginning: modes, offset, freq, maxerror, esterror, status."""

_SET: Final = (
    "let this machine set its clock from the network: `timedatectl set-ntp true`, or start chrony;"
    " `timedatectl` shows whether it does"
)


def kernel_says_synchronised() -> bool | None:
    """Whether the kernel calls the clock synchronised; None where it does not tell."""
    if sys.platform != "linux":
        return None
    told = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: only read
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(told) < 0:
            return None
    except (OSError, AttributeError):
        return None
    status: int = _STATUS.unpack_from(told.raw)[-1]
    return not status & _UNSYNCHRONISED


class ClockWatch:
    """Remembers whether the clock was synchronised. `look` now and then; it reads no file later."""

    def __init__(
        self,
        says: Callable[[], bool | None] | None = None,
        once: Path = SYNCHRONISED_ONCE,
    ) -> None:
        # Looked up at each start, so that a test can put another function into its place.
        self._says = says or kernel_says_synchronised
        self._was = once.exists()
        self._lost = False

    def look(self) -> None:
        """Ask the kernel."""
        now = self._says()
        self._was = self._was or now is True
        self._lost = self._was and now is False

    def problems(self, others: Iterator[tuple[str, float]]) -> Iterator[ProblemView]:
        """`others`: clocks that were read lately, by name: how far they are ahead of ours, in
        seconds."""
        if self._lost:
            yield problem(
                *("clock", RELAY, "unsynchronised"),
                "nothing sets the clock right any more: the kernel says that it is not"
                " synchronised",
                _SET,
            )
        for name, ahead_s in others:
            if abs(ahead_s) > MAX_SKEW_S:
                side = "behind" if ahead_s > 0 else "ahead of"
                yield problem(
                    *("clock", RELAY, f"skew {name}"),
                    f"the clock is {abs(ahead_s):.0f} s {side} that of {name}",
                    _SET,
                )
