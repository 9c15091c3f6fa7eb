"""What receivers are told at once, and its text."""

from __future__ import annotations

from typing import Final

import msgspec

from wai_api.health import ProblemView
from wai_transport.plain_text import one_line, shortened

MAX_LISTED: Final = 10  # problems in a text; the rest is counted
MAX_TITLE_CHARS: Final = 120


class Message(msgspec.Struct, frozen=True):
    """Problems that have `begun` and that are `over`. `lasting`: how many others there are still.
    `test`: somebody tries whether messages arrive. `at`: seconds since 1970."""

    at: float
    relay: str
    begun: tuple[ProblemView, ...] = ()
    over: tuple[ProblemView, ...] = ()
    lasting: int = 0
    test: bool = False

    @property
    def title(self) -> str:
        """One line, of printable characters."""
        if self.test:
            return f"A test from {one_line(self.relay)}"
        told = self.begun or self.over
        first = one_line(f"{_subject(told[0])}: {told[0].text}")
        word = "" if self.begun else "Recovered: "
        more = len(self.begun) + len(self.over) - 1
        rest = f" (and {more} more)" if more else ""
        room = MAX_TITLE_CHARS - len(word) - len(rest)
        return word + shortened(first, room) + rest

    @property
    def text(self) -> str:
        """Everything, in lines."""
        if self.test:
            return (
                f"Messages about problems of the relay {one_line(self.relay)} arrive here. Nothing"
                " is wrong; somebody ran `wai notify test`."
            )
        lines = [f"The relay {one_line(self.relay)}:", ""]
        for one in self.begun[:MAX_LISTED]:
            lines += [f"- {_subject(one)}: {one_line(one.text)}", f"  → {one_line(one.advice)}"]
        lines += _rest(self.begun, "more problems have begun")
        if self.over:
            lines += [""] * bool(self.begun) + ["Recovered:"]
            lines += [f"- {_subject(one)}: {one_line(one.text)}" for one in self.over[:MAX_LISTED]]
            lines += _rest(self.over, "more are over")
        if self.lasting:
            count = (
                "One other problem lasts" if self.lasting == 1 else f"{self.lasting} others last"
            )
            lines += ["", f"{count}: `wai status` shows everything."]
        elif not self.begun:
            lines += ["", "Nothing is wrong any more."]
        return "\n".join(lines)


def _subject(problem: ProblemView) -> str:
    return "this relay" if problem.subject == "relay" else one_line(problem.subject)


def _rest(listed: tuple[ProblemView, ...], what: str) -> list[str]:
    more = len(listed) - MAX_LISTED
    return [f"- {more} {what}"] if more > 0 else []
