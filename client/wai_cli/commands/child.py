"""A `wai` daemon as a child process of `wai up`: start it, watch it, stop it, keep its log.

It runs in its own session, so that Ctrl-C reaches `wai up` alone, which then stops its children in
the right order.
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

STOP_TIMEOUT_S: Final = 8.0  # the children's drain time, and a bit
LOG_TAIL_BYTES: Final = 2000


class Child:
    """A running `wai` command. `name` is for messages; `log` is truncated at each start."""

    def __init__(self, name: str, process: anyio.abc.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Child:
        """Start `wai ARGUMENTS` with this Python interpreter."""
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
        """Raise `TransportError`, with the end of its log, if it has ended."""
        code = self._process.returncode
        if code is not None:
            raise TransportError(f"the {self.name} {describe_exit(code)}:\n{self._tail()}")

    async def wait(self) -> None:
        """Wait until it ends, which is a fault: then raise `TransportError`."""
        await self._process.wait()
        self.check()

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if it does not end. May be called twice."""
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
