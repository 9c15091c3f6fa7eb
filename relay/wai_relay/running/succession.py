"""A new relay takes over from a running one without a cut (SIGUSR2).

The old relay starts the new one as its child, with the open port and the lock of the data folder
passed down. Once the new one accepts, the old one stops accepting, tells its nodes to begin a
session with whoever answers now, and finishes what it has in flight. A child that does not come up
is ended, and the old relay goes on. A relay that is told to stop before its child has taken over
ends the child too: whoever stopped it (a service manager, for instance) means the whole relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from wai_protocol.errors import TransportError
from wai_transport.folder import FolderLock

VARIABLE: Final = "WAI_HANDOVER"
"""What a successor finds in its environment; nobody else sets it."""

READY_S: Final = 30.0
"""From the new relay's start to its port: it migrates the database first."""

END_S: Final = 5.0
"""How long a successor that is not wanted may take to end by itself after SIGTERM: it has nothing
in flight. Then it is killed."""

READY: Final = b"ready"

_log = logging.getLogger("wai.relay")


class Inheritance(msgspec.Struct, frozen=True):
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

    def to_json(self) -> str:
        """The variable's value."""
        return json.dumps({"listening": self.listening, "lock": self.lock, "ready": self.ready})

    def tell_ready(self) -> None:
        """Tell the predecessor that we accept now."""
        with contextlib.suppress(OSError):  # it died meanwhile: then we are alone, and go on
            os.write(self.ready, READY)
        with contextlib.suppress(OSError):
            os.close(self.ready)


class Succession:
    """Starts a relay's successor, and owns that process until it has taken over.

    `listening` gives the descriptors of the open port. `stop` is set when this relay is to stop:
    from outside, or from here once the successor accepts; whichever comes first decides whether
    the successor stays. Belongs to one loop; `end` it.
    """

    def __init__(
        self,
        listening: Callable[[], Sequence[int]],
        lock: FolderLock,
        stop: asyncio.Event,
    ) -> None:
        self._listening = listening
        self._lock = lock
        self._stop = stop
        self._task: asyncio.Task[None] | None = None
        self.taken_over = False
        """Whether a successor serves in this relay's place."""

    def begin(self) -> None:
        """Start a successor, unless one is starting already or this relay is stopping."""
        if self._stop.is_set():
            _log.warning("upgrade refused: this relay is stopping already")
        elif self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._upgrade())

    async def end(self) -> None:
        """Start no successor from now on, and end one that has not taken over. Idempotent.

        Returns when the process is gone, `END_S` after SIGTERM at the latest.
        """
        self._stop.set()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _upgrade(self) -> None:
        _log.info("upgrade: starting a new relay")
        try:
            pid = await self._start()
        except TransportError as error:
            self._lock.sign()  # the one that failed may have written its own process id
            _log.error("upgrade failed, this relay goes on: %s", error)
            return
        if pid is None:
            self._lock.sign()
            _log.info("upgrade: given up, since this relay is to stop; the new one is ended")
            return
        _log.info("upgrade: the new relay, process %d, has taken over", pid)
        self.taken_over = True
        self._stop.set()

    async def _start(self) -> int | None:
        """Start a successor and wait until it accepts: its process id, None if `stop` was set
        before. Raises `TransportError` if it does not come up. Unless it took over it is gone."""
        reading, writing = os.pipe()
        try:
            inheritance = Inheritance(tuple(self._listening()), self._lock.fileno(), writing)
            # Not asyncio's own: uvloop leaves copies of stdin, stdout and stderr open in the child,
            # and the child's child would have twice as many.
            process = await asyncio.to_thread(_spawn, inheritance)
        except OSError as error:
            os.close(reading)
            raise TransportError(f"the new relay could not be started: {error}") from error
        finally:
            os.close(writing)
        loop = asyncio.get_running_loop()
        said = loop.create_task(_read(reading))
        stopped = loop.create_task(self._stop.wait())
        await asyncio.wait((said, stopped), timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if said.done() and said.result() == READY and not self._stop.is_set():
            return process.pid
        hung = not said.done()
        if hung:
            said.cancel()
        if hung or self._stop.is_set():
            process.terminate()
        await asyncio.to_thread(_wait_or_kill, process)
        if self._stop.is_set():
            return None
        raise TransportError(f"the new relay did not come up (exit status {process.returncode})")


def _spawn(inheritance: Inheritance) -> subprocess.Popen[bytes]:
    """Run the command that started us once more. Raises `OSError`."""
    return subprocess.Popen(  # noqa: S603 - the arguments that we were started with
        [sys.executable, *_safe_path(), *sys.orig_argv[1:]],
        env={**os.environ, VARIABLE: inheritance.to_json()},
        pass_fds=(*inheritance.listening, inheritance.lock, inheritance.ready),
        start_new_session=True,  # a Ctrl-C in our terminal is for us, and it has its own life
    )


def _safe_path() -> list[str]:
    """The option by which `-m` imports nothing from the working directory, unless we have it."""
    return [] if sys.flags.safe_path else ["-P"]


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    """Return when `process` has ended, by force after `END_S`."""
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
