"""The results of one kind of fault: figures about streams, and broken promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.harness.counted import Counted

_SHOWN_VIOLATIONS = 8  # of one kind; the rest is counted


@dataclass(slots=True)
class Findings:
    """The results of one kind of fault, filled in by a trial. Times are in seconds.

    `resumed`: for each stream that was open when a fault ended, the time from there to
    its next number. `notes` are figures that only one kind of fault has.
    """

    kind: str
    promise: str
    strikes: int = 0
    touched: int = 0
    answers: list[Counted] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: str = ""

    def judge(self, *, may_refuse: bool, resumes_within_s: float | None) -> None:
        """Add violations of the promises that hold for every kind of fault to `broken`."""
        for one in self.answers:
            if one.lost or one.repeated or one.reordered:
                self.broken.append(
                    f"a stream lost {one.lost}, repeated {one.repeated} and reordered"
                    f" {one.reordered} of {len(one.numbers)} numbers"
                )
            if one.refusal and not may_refuse:
                self.broken.append(f"a request was refused: {one.refusal}")
            elif not one.whole and not one.refusal:
                what = one.broken or one.error or "not whole"
                self.broken.append(f"a stream was lost after {len(one.numbers)} numbers: {what}")
        late = percentile(self.resumed, 0.99)
        if resumes_within_s is not None and late > resumes_within_s:
            self.broken.append(
                f"streams went on {late:.1f} s (p99) after the link was good, not within"
                f" {resumes_within_s:g} s"
            )

    def text(self) -> str:
        """Return a report of some lines."""
        if self.left_out:
            return f"{self.kind}: LEFT OUT: {self.left_out}"
        answers = [one for one in self.answers if not one.refusal]
        lines = [
            f"{self.kind}: {self.strikes} strikes; {len(answers)} streams, {self.touched} of them"
            f" touched, {sum(one.whole for one in answers)} whole;"
            f" {len(self.answers) - len(answers)} requests refused",
            f"  numbers lost {sum(one.lost for one in answers)},"
            f" repeated {sum(one.repeated for one in answers)},"
            f" reordered {sum(one.reordered for one in answers)}",
            f"  longest pause of a stream: {spread([one.longest_pause_s for one in answers])}",
        ]
        if self.resumed:
            lines.append(f"  from the fault's end to the next number: {spread(self.resumed)}")
        lines += [f"  {note}" for note in self.notes]
        lines.append(f"  {'BROKEN' if self.broken else 'kept'}: {self.promise}")
        lines += [f"    - {text}" for text in self.broken[:_SHOWN_VIOLATIONS]]
        if (more := len(self.broken) - _SHOWN_VIOLATIONS) > 0:
            lines.append(f"    - and {more} more")
        return "\n".join(lines)


def percentile(figures: Sequence[float], share: float) -> float:
    """Return the smallest figure that at least `share` of them do not exceed; 0 if none."""
    if not figures:
        return 0.0
    return sorted(figures)[max(math.ceil(share * len(figures)) - 1, 0)]


def spread(seconds: Sequence[float]) -> str:
    """Return median, p99 and longest as text."""
    p50, p99 = percentile(seconds, 0.5), percentile(seconds, 0.99)
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(seconds, default=0.0):.2f} s"
