"""A new relay takes over from a running one, and nobody notices (SIGUSR2).

The old relay starts the new one as its child, with the open port and the lock of the data folder
passed down. Once the new one accepts, the old one stops accepting, tells its nodes to begin a
session with whoever answers now, and finishes what it has in flight. If the new one does not come
up, the old one goes on as if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from wai_protocol.errors import TransportError

VARIABLE: Final = "WAI_HANDOVER"
"""What a successor finds in its environment; nobody else sets it."""

READY_S: Final = 30.0
"""From the new relay's start to its port: it migrates the database first."""

READY: Final = b"ready"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a successor gets: open files, by number.

    `listening`: sockets of the port; `lock`: the data folder's; `ready`: a pipe to tell on.
    """

    listening: tuple[int, ...]
    lock: int
    ready: int

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Inheritance | None:
        """What a predecessor passed down; None for a relay that starts by itself."""
        text = environment.get(VARIABLE)
        if text is None:
            return None
        fields = json.loads(text)
        return cls(tuple(fields["listening"]), fields["lock"], fields["ready"])

    def tell_ready(self) -> None:
        """Tell the predecessor that we accept now."""
        with contextlib.suppress(OSError):  # it died meanwhile: then we are alone, and go on
            os.write(self.ready, READY)
        with contextlib.suppress(OSError):
            os.close(self.ready)


async def hand_over(listening: Sequence[int], lock: int) -> int:
    """Start the command that started us once more, and wait until it accepts on our port.

    Returns its process id. Raises `TransportError` if it does not come up; it is ended then.
    """
    reading, writing = os.pipe()
    try:
        environment = dict(os.environ)
        environment[VARIABLE] = json.dumps(
            {"listening": list(listening), "lock": lock, "ready": writing}
        )
        # Not asyncio's own: uvloop leaves copies of stdin, stdout and stderr open in the child, and
        # the child's child would have twice as many.
        process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, *_safe_path(), *sys.orig_argv[1:]],
            env=environment,
            pass_fds=(*listening, lock, writing),
            start_new_session=True,  # a Ctrl-C in our terminal is for us, and it has its own life
        )
    except OSError as error:
        os.close(reading)
        raise TransportError(f"the new relay could not be started: {error}") from error
    finally:
        os.close(writing)
    try:
        async with asyncio.timeout(READY_S):
            said = await _read(reading)
    except TimeoutError:
        said = b""
    if said == READY:
        return process.pid
    process.kill()
    await asyncio.to_thread(process.wait)
    raise TransportError(f"the new relay did not come up (exit status {process.returncode})")


def _safe_path() -> list[str]:
    """The option by which `-m` imports nothing from the working directory, unless we have it."""
    return [] if sys.flags.safe_path else ["-P"]


async def _read(descriptor: int) -> bytes:
    """What the other end of a pipe says before it closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return await reader.read(len(READY))
    finally:
        transport.close()
