"""Describe how a child process ended."""

from __future__ import annotations

import signal


def describe_exit(code: int) -> str:
    """Return a phrase for an exit code of `subprocess`, which is negative for a signal."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
