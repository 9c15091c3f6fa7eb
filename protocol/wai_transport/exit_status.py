"""How a child process ended, in words."""

from __future__ import annotations

import signal


def how_it_ended(code: int) -> str:
    """`code` as `subprocess` gives it: negative for the signal that ended the process."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
