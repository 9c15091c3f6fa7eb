"""Run a command in a pseudo-terminal: read what it draws, press keys, resize, read settings."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Self

import psutil

from .processes import START_TIMEOUT_S, STOP_TIMEOUT_S

# A shell with one job: its terminal provides Ctrl-C, Ctrl-Z and the window's size. A process whose
# group has no such parent can't be stopped by Ctrl-Z. It exits with the job's status.
_SHELL: Final = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
begin, go = os.pipe()
def wait(): os.read(begin, 1); signal.signal(signal.SIGTTOU, signal.SIG_DFL)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    wait()
    os.execv(sys.argv[1], sys.argv[1:])
os.setpgid(pid, pid)
os.tcsetpgrp(0, pid)
os.write(go, b"!")
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""
_ESCAPE: Final = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
HOME: Final = b"\x1b[H"


class Terminal:
    """A pseudo-terminal and the command in it. `drawn` is all that was written to it."""

    def __init__(
        self, argv: Sequence[str], *, size: tuple[int, int], env: Mapping[str, str] | None = None
    ) -> None:
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        self.resize(*size)
        self.found = self.settings()
        self.drawn = b""
        kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SHELL, *argv],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            env={**kept, "TERM": "xterm-256color", **(env or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for command in psutil.Process(self.process.pid).children():
                command.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def resize(self, columns: int, rows: int) -> None:
        """Make the window so large; the command gets SIGWINCH."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        for command in psutil.Process(self.process.pid).children():
            command.send_signal(number)

    def stopped(self) -> bool:
        """Whether the command is stopped, as by Ctrl-Z."""
        commands = psutil.Process(self.process.pid).children()
        return all(command.status() == psutil.STATUS_STOPPED for command in commands)

    def settings(self) -> list[Any]:
        """The terminal's settings."""
        return termios.tcgetattr(self._slave)

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._master, keys)

    def frame(self) -> list[str]:
        """The newest drawing that is complete, without colours."""
        whole = self.drawn[: self.drawn.rfind(b"\x1b[J")]
        text = _ESCAPE.sub(b"", whole[whole.rfind(HOME) :])
        # the terminal makes "\r\n" of each "\n", also of those that follow a "\r"
        return [line.rstrip("\r") for line in text.decode().split("\n")]

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Read until `ready()`; an `AssertionError` with what is drawn if it never is."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}; drawn last: {self.drawn[-3000:]!r}")
            self._read(0.05)

    def wait_for_text(self, text: str) -> None:
        """Read until the newest drawing has `text`."""
        self.wait_for(lambda: any(text in line for line in self.frame()), f"no {text!r}")

    def end(self) -> int:
        """The exit status, once it has ended by itself."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still runs; drawn last: {self.drawn[-2000:]!r}"
            self._read(0.05)
        self._read(0.0)
        return self.process.returncode

    def _read(self, wait_s: float) -> None:
        ready, _, _ = select.select([self._master], [], [], wait_s)
        if ready:
            self.drawn += os.read(self._master, 65536)
