"""Read the relay's live feed in a thread, and reconnect when it is lost.

Each event is put into a queue, and a byte into a pipe, so that the drawing thread can wait for keys
and events at the same time. The relay is looked up before each connection, since it may have
another port or certificate after a restart.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from wai_protocol.errors import AuthError, TransportError, WaiError

from .admin_client import AdminClient, open_connection, stream
from .live_state import parse
from .target import Target

SILENCE_S: Final = 40.0  # the relay sends something every 15 s, so two were missed
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 5.0  # short, because somebody looks at the screen


@dataclass(frozen=True, slots=True)
class FeedConnected:
    """The feed has connected. `clock_ahead_s`: how far the relay's clock is ahead of ours."""

    target: Target
    version: str
    clock_ahead_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The feed has ended. `fatal`: reconnecting is useless."""

    why: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event of the feed."""

    name: str
    value: Any


FeedUpdate = FeedConnected | Lost | FeedEvent


def read_feed(target: Target) -> Iterator[FeedConnected | FeedEvent]:
    """Yield the events of one connection until it ends. Raises `WaiError`."""
    with AdminClient(target) as admin:
        who = admin.get("/whoami")
    with open_connection(target, SILENCE_S) as connection:
        answer = stream(connection, target, "/events")
        yield FeedConnected(target, str(who["version"]), float(who["time"]) - time.time())
        try:
            for name, value in parse(iter(answer.readline, b"")):
                yield FeedEvent(name, value)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise TransportError(f"the connection to {target.url} was lost: {error}") from error


class FeedThread:
    """A thread that reads the feed until the process ends.

    `fileno` becomes readable when `take` has something; `find` returns the relay to connect to.
    """

    def __init__(self, find: Callable[[], Target]) -> None:
        self._find = find
        self._come: queue.SimpleQueue[FeedUpdate] = queue.SimpleQueue()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def fileno(self) -> int:
        """Return the file descriptor to wait for."""
        return self._reading

    def wake(self) -> None:
        """Make `fileno` readable."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so it is readable already
            os.write(self._writing, b"!")

    @property
    def wakeup(self) -> int:
        """Return the writing end of the pipe, for `signal.set_wakeup_fd`."""
        return self._writing

    def take(self) -> Iterator[FeedUpdate]:
        """Yield what has arrived since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, 65536)
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._come.get_nowait()

    def _put(self, update: FeedUpdate) -> None:
        self._come.put(update)
        self.wake()

    def _run(self) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            why = "the relay ended the feed"
            try:
                for update in read_feed(self._find()):
                    self._put(update)
                    wait_s = RETRY_FIRST_S
            except AuthError as error:
                self._put(Lost(str(error), fatal=True))
                return
            except WaiError as error:
                why = str(error)
            self._put(Lost(why, fatal=False))
            time.sleep(random.uniform(0.5, 1.0) * wait_s)  # noqa: S311 - spreads load, no secret
            wait_s = min(RETRY_MAX_S, wait_s * 2)
