"""What one step of `wai doctor` found out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice` says what to do about a problem."""

    check: str
    ok: bool
    text: str
    advice: str = ""

    def show(self) -> None:
        """Print it for people; what a relay or a server said is in `text`."""
        mark = "ok     " if self.ok else "problem"
        shown = "".join(c if c.isprintable() else "?" for c in self.text)
        print(f"{mark}  {self.check:<8}  {shown}", flush=True)
        if self.advice:
            print(f"                   → {self.advice}", flush=True)
