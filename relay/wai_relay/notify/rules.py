"""What is told, and when. A state machine without I/O, told the time.

- A problem is told when it has been there for `after_s`, and that it is over when it has been gone
  as long. One that comes and goes is one problem: each time that it has come back within an hour,
  it must be gone four times as long.
- What begins or ends at about the same time is told in one message (`GROUP_S`), and messages keep a
  distance (`GAP_S`, and `LONG_GAP_S` after `MANY` in an hour): a storm is a few messages.
- In quiet hours nothing is told. What is still so at their end is told then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from wai_api.health import ProblemView

GROUP_S: Final = 10.0  # two looks: what has one cause is seen within them
GAP_S: Final = 60.0
LONG_GAP_S: Final = 600.0
MANY: Final = 10
HOUR_S: Final = 3600.0
LONGEST_HOLD_S: Final = 3600.0


class News(NamedTuple):
    """What is to be told now, and how many problems last besides."""

    begun: tuple[ProblemView, ...]
    over: tuple[ProblemView, ...]
    lasting: int


class _Case(msgspec.Struct):
    """A problem from when it was seen first until it is over. `told`: its receivers know of it.
    `gone_since`: None while it is there. `begun_at`: its beginnings within the last hour."""

    problem: ProblemView
    since: float
    told: bool = False
    gone_since: float | None = None
    begun_at: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=16))

    def hold_s(self, after_s: float, now: float) -> float:
        """How long it must be gone to be over."""
        back = sum(1 for at in self.begun_at if at > now - HOUR_S)
        return min(after_s * 4.0 ** max(back - 1, 0), max(LONGEST_HOLD_S, after_s))


class Announcer:
    """Knows what was told. Times are of one steady clock, in seconds."""

    def __init__(self, after_s: float, known: Iterable[ProblemView] = ()) -> None:
        """`known`: what was told before this relay started."""
        self.after_s = after_s
        self._cases = {one.id: _Case(one, float("-inf"), told=True) for one in known}
        self._due_since: float | None = None
        self._sent: deque[float] = deque(maxlen=MANY)

    def look(self, found: Iterable[ProblemView], now: float, *, quiet: bool = False) -> News | None:
        """Take in what is wrong now; return what is to be told, None for nothing."""
        self._take({one.id: one for one in found}, now)
        begun = [case for case in self._cases.values() if self._has_begun(case, now)]
        over = [case for case in self._cases.values() if case.told and self._is_over(case, now)]
        if not begun and not over:
            self._due_since = None
            return None
        if quiet:
            return None
        if self._due_since is None:
            self._due_since = now
        if now < self._due_since + GROUP_S or now < self._next_at(now):
            return None
        self._due_since = None
        self._sent.append(now)
        for case in begun:
            case.told = True
        for case in over:
            case.told = False
        lasting = sum(case.told and case.gone_since is None for case in self._cases.values())
        return News(
            tuple(case.problem for case in begun),
            tuple(case.problem for case in over),
            lasting - len(begun),
        )

    def _take(self, found: dict[str, ProblemView], now: float) -> None:
        for name, problem in found.items():
            case = self._cases.get(name)
            if case is None:
                case = self._cases[name] = _Case(problem, now)
                case.begun_at.append(now)
            elif case.gone_since is not None:
                case.begun_at.append(now)
                if not case.told and self._is_over(case, now):
                    case.since = now  # it was over, and nobody had been told of it
                case.gone_since = None
            case.problem = problem
        for name, case in list(self._cases.items()):
            if name in found:
                continue
            if case.gone_since is None:
                case.gone_since = now
            # What was told is kept for an hour, since it may be one that comes and goes.
            elif not case.told and now >= case.gone_since + max(HOUR_S, self.after_s):
                del self._cases[name]

    def _has_begun(self, case: _Case, now: float) -> bool:
        return not case.told and case.gone_since is None and now >= case.since + self.after_s

    def _is_over(self, case: _Case, now: float) -> bool:
        if case.gone_since is None:
            return False
        return now >= case.gone_since + case.hold_s(self.after_s, now)

    def _next_at(self, now: float) -> float:
        """When the next message may be sent."""
        if not self._sent:
            return now
        many = len(self._sent) == MANY and self._sent[0] > now - HOUR_S
        return self._sent[-1] + (LONG_GAP_S if many else GAP_S)
