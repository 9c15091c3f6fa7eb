"""The result of one step of `wai doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check. `advice` says what to do about a problem."""

    check: str
    ok: bool
    text: str
    advice: str = ""

    def show(self) -> None:
        """Print it for people, with `text` escaped, since a relay or a server may have sent it."""
        mark = "ok     " if self.ok else "problem"
        shown = "".join(c if c.isprintable() else "?" for c in self.text)
        print(f"{mark}  {self.check:<8}  {shown}", flush=True)
        if self.advice:
            print(f"                   → {self.advice}", flush=True)
