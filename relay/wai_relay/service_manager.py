"""Tells systemd, where it started us, how we are (sd_notify(3)): one datagram a word."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "NOTIFY_SOCKET"


def notify(*words: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send, for instance, "READY=1". Without a service manager, nothing is sent."""
    address = environment.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux' abstract names begin with a zero byte
        address = "\0" + address[1:]
    # A service manager that does not listen is no reason for a relay not to serve.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(words).encode(), address)


def notify_ready() -> None:
    """We serve; and we are the main process, also where a predecessor was (an upgrade)."""
    notify(f"MAINPID={os.getpid()}", "READY=1")


def notify_stopping(*, succeeded: bool) -> None:
    """We end; with a successor the service goes on, and nothing is said."""
    if not succeeded:
        notify("STOPPING=1")
