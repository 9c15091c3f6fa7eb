"""A `wai` daemon as a child process of `wai up`: started, watched, stopped, its log kept.

It runs in a session of its own, so that Ctrl-C reaches us alone and we decide the order in which
things end.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from wai_protocol.errors import TransportError
from wai_transport.exit_status import describe_exit

STOP_TIMEOUT_S: Final = 8.0  # what the children are given to let answers in flight end, and a bit
LOG_TAIL_BYTES: Final = 2000


class Child:
    """One `wai` command. `name` is what people call it; `log` takes its output, anew each time."""

    def __init__(self, name: str, process: anyio.abc.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Child:
        """Start `wai ARGUMENTS` with this Python."""
        with log.open("wb") as output:
            process = await anyio.open_process(
                [sys.executable, "-P", "-m", "wai_cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Raises `TransportError`, with the end of its log, if it has ended."""
        code = self._process.returncode
        if code is not None:
            raise TransportError(f"the {self.name} {describe_exit(code)}:\n{self._tail()}")

    async def wait(self) -> None:
        """Until it ends, which it should not: then raises `TransportError`."""
        await self._process.wait()
        self.check()

    async def stop(self) -> None:
        """SIGTERM, and by force if that is not enough. Idempotent."""
        with anyio.CancelScope(shield=True):
            if self._process.returncode is None:
                self._process.terminate()
            with anyio.move_on_after(STOP_TIMEOUT_S):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            await self._process.aclose()

    def _tail(self) -> str:
        with self._log.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
