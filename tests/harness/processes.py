"""Real processes in tests: start them, read their log, signal them, and leave none behind.

A `Daemon` runs in its own session and has a mark in its environment, by which all
processes that it started are found, whatever session or parent they have.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

START_TIMEOUT_S: Final = 60.0  # two busy cores start Python in seconds, not in milliseconds
STOP_TIMEOUT_S: Final = 40.0
_POLL_S: Final = 0.02  # at first: waits that are short are seen to be over at once
_LONGEST_POLL_S: Final = 0.05
_POLL_GROWTH: Final = 1.2
# Managed servers get it too: they are given names with this prefix (`managed.environment`).
_MARK: Final = "XDG_WAI_TEST_DAEMON"
_SHOWN_LOG_CHARS: Final = 6000  # the end of a log, where the fault is


class Daemon:
    """One started program. Its stdout and stderr go to the file `log`.

    As a context manager it is stopped at the end, with SIGKILL if needed. The test fails if one
    of the processes that it started still runs afterwards.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        """`user`: who it runs as, with that user's group alone; None: who runs the tests."""
        self.argv = list(argv)
        self.log = log
        self._mark = uuid.uuid4().hex
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {}), _MARK: self._mark},
                cwd=cwd,
                start_new_session=True,
                **as_user(user),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self.close()
        if error is not None:
            error.add_note(self.explain("its log"))
        elif left:
            raise AssertionError(self.explain(f"left processes behind: {left}"))

    def close(self) -> list[str]:
        """End it, by force if SIGTERM is not enough; what it left behind, killed: command lines."""
        if self.exit_code is None:
            self.send(signal.SIGCONT)  # a paused process acts on no other signal
            self.send(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.kill_leftovers()

    @property
    def pid(self) -> int:
        """The process id; also that of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """All that it has written so far."""
        return self.log.read_text(errors="replace")

    def explain(self, what: str) -> str:
        """A failure's text: the command, `what` is wrong and the end of the log."""
        return f"{' '.join(self.argv)}\n{what}:\n{self.output()[-_SHOWN_LOG_CHARS:]}"

    def wait_for_output(
        self, pattern: str, timeout_s: float = START_TIMEOUT_S, *, after: int = 0
    ) -> re.Match[str]:
        """The first match of `pattern` in the output from character `after` on."""
        compiled = re.compile(pattern, re.MULTILINE)
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = compiled.search(self.output(), after)
            if match:
                found.append(match)
            return match is not None

        self.wait_until(look, f"no line matches {pattern!r}", timeout_s)
        return found[0]

    def wait_until(
        self, ready: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Wait for `ready()`; an `AssertionError` saying `what`, with the log, if it never is or if
        the process ends first."""
        deadline, pause_s = time.monotonic() + timeout_s, _POLL_S
        while not ready():
            if self.exit_code is not None:
                raise AssertionError(self.explain(f"ended with {self.exit_code} ({what})"))
            if time.monotonic() > deadline:
                raise AssertionError(self.explain(f"{what} after {timeout_s:g} s"))
            time.sleep(pause_s)
            pause_s = min(pause_s * _POLL_GROWTH, _LONGEST_POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def interrupt_group(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to every process of the group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit code, once it has ended by itself; an `AssertionError` if it does not."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.explain(f"still runs after {timeout_s:g} s")) from None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, as a service manager does it, and the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL to the process alone, not to processes that it started."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Send SIGSTOP: the kernel keeps acknowledging, but the program does not answer."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self.send(signal.SIGCONT)

    def family(self) -> list[psutil.Process]:
        """Every living process that was started by this one, itself included."""
        return [process for process in psutil.process_iter() if _carries(process, self._mark)]

    def kill_leftovers(self) -> list[str]:
        """Kill the processes that outlived it; return their command lines."""
        if self.exit_code is None:
            raise AssertionError("leftovers are looked for after the process has ended")
        left = []
        for process in self.family():
            try:
                left.append(" ".join(process.cmdline()))
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return left


def as_user(user: str | None) -> dict[str, Any]:
    """The arguments of `subprocess` by which a program runs as `user`; None: as who asks."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": ()}


_OWN_PORTS: Final = (12_000, 32_000)
"""Below the kernel's own, which begin at 32768."""


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False  # gone, or not ours


def free_port() -> int:
    """A TCP port that was free a moment ago, for a process that listens soon. It is none of those
    that the kernel gives to connections and to who asks for any (`ip_local_port_range`): one of
    these may be taken before the process has started."""
    while True:
        port = random.SystemRandom().randrange(*_OWN_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait for `ready()`, which does not depend on one process alone."""
    deadline, pause_s = time.monotonic() + timeout_s, _POLL_S
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} after {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * _POLL_GROWTH, _LONGEST_POLL_S)
