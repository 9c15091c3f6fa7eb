"""The report of a run: its figures, and the violations of what is promised."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.harness.counted import Counted

_BEFORE_THE_END_S = 30.0  # time to live, waiting for a node, and the way: how late an error may be


@dataclass(slots=True)
class Report:
    """The results of a run. `down`: for each node, the times at which its process did not run."""

    seed: int
    began_at: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    streams: list[Counted] = field(default_factory=list)
    down: list[list[tuple[float, float]]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def violations(self) -> list[str]:
        """Return what must not happen and did."""
        found = list(self.leaks)
        for stream in self.streams:
            if stream.lost or stream.repeated or stream.reordered:
                found.append(
                    f"a stream lost {stream.lost}, repeated {stream.repeated} and reordered"
                    f" {stream.reordered} of {len(stream.numbers)} numbers"
                )
            if stream.broken:
                found.append(f"a stream broke: {stream.broken}")
            elif not stream.whole and not self._all_gone(stream):
                what = stream.error or stream.refusal or "not whole"
                found.append(
                    f"a stream failed while a node was there: {what} after {len(stream.numbers)}"
                    f" numbers, {stream.ended_at - self.began_at:.1f} s into the run"
                )
        return found

    def _all_gone(self, stream: Counted) -> bool:
        """Return whether at some moment shortly before the stream's end no node was running."""
        since, until = stream.ended_at - _BEFORE_THE_END_S, stream.ended_at
        return any(
            max(a[0], b[0], since) < min(a[1], b[1], until)
            for a in self.down[0]
            for b in self.down[1]
        )

    def text(self) -> str:
        """Return the report as text."""
        streams = self.streams
        refused, ended = [s for s in streams if s.refusal], [s for s in streams if s.error]
        pauses = sorted(s.longest_pause_s for s in streams if s.whole) or [0.0]
        lines = [f"{sum(self.faults.values())} faults in {self.took_s:.0f} s, seed {self.seed}:"]
        lines += [f"  {number:4} × {kind}" for kind, number in self.faults.most_common()]
        lines += [
            f"streams: {len(streams) - len(refused)}, whole: {sum(s.whole for s in streams)}",
            f"numbers lost: {sum(s.lost for s in streams)},"
            f" repeated: {sum(s.repeated for s in streams)},"
            f" reordered: {sum(s.reordered for s in streams)}",
            f"while no node was there: {len(ended)} ended with a clear error, {len(refused)} tries"
            " were refused with 503",
            f"longest pause of a stream: median {pauses[len(pauses) // 2]:.2f} s,"
            f" longest {pauses[-1]:.2f} s",
            *self.notes,
        ]
        violations = self.violations
        lines += [f"VIOLATION: {violation}" for violation in violations[:20]]
        lines.append("FAILED" if violations else "all promises kept")
        return "\n".join(lines)
