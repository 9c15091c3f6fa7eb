"""The environment of a measured path: a folder, free ports, and processes that end with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from bench.certificate import Certificate, make_certificate

READY_TIMEOUT_S: Final = 60.0  # LiteLLM takes 15 s to import here
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.005  # start times are told in milliseconds


class StartError(Exception):
    """A process did not start; the message ends with its output."""


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Place:
    """One path's folder and processes. Leaving it as a context stops all of them."""

    folder: Path
    origin_port: int
    cores: set[int] | None = None
    _certificate: Certificate | None = None
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Place:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def certificate(self) -> Certificate:
        """This path's certificate, made at the first use."""
        if self._certificate is None:
            self._certificate = make_certificate(self.folder)
        return self._certificate

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file into the folder."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def spawn(
        self, label: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> int:
        """Start `command`, with its output in `LABEL.log` in the folder; return its process id."""
        with (self.folder / f"{label}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        if self.cores:
            os.sched_setaffinity(process.pid, self.cores)
        self._running.append(process)
        return process.pid

    def log(self, label: str) -> str:
        """Return the process's output so far."""
        return (self.folder / f"{label}.log").read_text(errors="replace")

    def wait_for(self, label: str, ready: Callable[[], bool]) -> float:
        """Wait until `ready()`; return the seconds. Raises `StartError` after a limit."""
        began_s = time.perf_counter()
        while not ready():
            ended = any(process.poll() is not None for process in self._running)
            if ended or time.perf_counter() - began_s > READY_TIMEOUT_S:
                raise StartError(f"{label} did not come up: {self.log(label)[-800:]}")
            time.sleep(_POLL_S)
        return time.perf_counter() - began_s

    def wait_for_port(self, label: str, port: int) -> float:
        """Wait until somebody listens on `port`."""
        return self.wait_for(label, lambda: accepts(port))

    def stop(self) -> None:
        """End all started processes and their children, last first, and wait for them."""
        for process in reversed(self._running):
            _signal(process, signal.SIGTERM)
        deadline_s = time.perf_counter() + _STOP_TIMEOUT_S
        for process in self._running:
            try:
                process.wait(max(0.0, deadline_s - time.perf_counter()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()
        self._running.clear()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the process and its children; each was started as a group's leader."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def accepts(port: int) -> bool:
    """Return whether a TCP connection to `port` on loopback is accepted."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_program(name: str) -> str | None:
    """Return a program's path, also from Debian's folders for daemons."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")
