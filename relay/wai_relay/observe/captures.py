"""The prompts and answers of one key's requests, for a limited time, because an admin asked for it.

Off by default. They are in this process's memory and nowhere else, bounded in bytes and in number,
and wiped at the end of their time, when an admin turns the capture off or revokes the key, and when
the relay stops. Only what is between the heads is taken: no header, no query, so no key. Who may
turn it on and look is `admin`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from wai_api.captures import MAX_CAPTURE_S
from wai_protocol.errors import Fault, RequestError
from wai_relay.contracts.records import RequestRecord
from wai_relay.http.exchange import Exchange
from wai_relay.http.wrapped_exchange import WrappedExchange

MAX_PART_BYTES: Final = 1024 * 1024  # of a prompt, and of an answer; what is beyond is cut off
MAX_TOTAL_BYTES: Final = 32 * 1024 * 1024  # of all; the oldest request makes room
MAX_REQUESTS: Final = 500
MAX_KEYS: Final = 16  # captured at once; one or two are looked into at a time

CallLater = Callable[[float, Callable[[], None]], Any]


class Captured:
    """One request's prompt and answer, as the caller sent and got them. `prompt_cut`, `answer_cut`:
    there was more."""

    __slots__ = (
        "answer",
        "answer_cut",
        "kept",
        "key_id",
        "prompt",
        "prompt_cut",
        "prompt_read",
        "record",
    )

    def __init__(self, record: RequestRecord, key_id: str) -> None:
        self.record = record
        self.key_id = key_id
        self.prompt = bytearray()
        self.answer = bytearray()
        self.prompt_cut = False
        self.answer_cut = False
        self.prompt_read = False
        """Whether the prompt was read to its end: a request may be refused before."""
        self.kept = True
        """False once it is wiped: what still comes is not taken."""

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.prompt) + len(self.answer)


class CaptureState(NamedTuple):
    """A key that is captured: until when (seconds since 1970), and how much there is."""

    key_id: str
    until: float
    requests: int
    size_bytes: int


class _Running:
    __slots__ = ("ends_at", "timer", "until")

    def __init__(self, ends_at: float, until: float, timer: Any) -> None:
        self.ends_at = ends_at
        self.until = until
        self.timer = timer


class Captures:
    """See the module. Belongs to one loop; `close` it."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        call_later: CallLater | None = None,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._call_later = call_later
        self._running: dict[str, _Running] = {}
        self._kept: OrderedDict[str, Captured] = OrderedDict()
        self._total = 0

    def begin(self, key_id: str, for_s: float) -> float:
        """Capture the requests of a key that come from now on; return until when.

        One that is captured already is captured for `for_s` from now. Raises `RequestError` where
        too many are.
        """
        known = self._running.get(key_id)
        if known is None and len(self._running) >= MAX_KEYS:
            raise RequestError(
                f"{MAX_KEYS} keys are captured already; turn one off first", Fault.OVERLOADED
            )
        if known is not None:
            known.timer.cancel()
        for_s = min(for_s, MAX_CAPTURE_S)
        call_later = self._call_later or asyncio.get_running_loop().call_later
        timer = call_later(for_s, lambda: self._end_due(key_id))
        until = self._wall_clock() + for_s
        self._running[key_id] = _Running(self._clock() + for_s, until, timer)
        return until

    def end(self, key_id: str) -> bool:
        """Capture a key no more, and wipe what there is of it. False: it was not captured."""
        running = self._running.pop(key_id, None)
        if running is not None:
            running.timer.cancel()
        for request_id in [known for known, one in self._kept.items() if one.key_id == key_id]:
            self._wipe(request_id)
        return running is not None

    def close(self) -> None:
        """Wipe everything."""
        for key_id in list(self._running):
            self.end(key_id)

    def until(self, key_id: str) -> float | None:
        """Until when a key is captured, in seconds since 1970; None: it is not."""
        return running.until if (running := self._live(key_id)) is not None else None

    def states(self) -> list[CaptureState]:
        """The keys that are captured now."""
        found = []
        for key_id in list(self._running):
            if (running := self._live(key_id)) is not None:
                mine = [one for one in self._kept.values() if one.key_id == key_id]
                size = sum(one.size for one in mine)
                found.append(CaptureState(key_id, running.until, len(mine), size))
        return found

    def find(self, request_id: str) -> Captured | None:
        """What was captured of a request."""
        found = self._kept.get(request_id)
        return found if found is not None and self._live(found.key_id) is not None else None

    def watched(self, exchange: Exchange, record: RequestRecord, key_id: str) -> Exchange:
        """The exchange by which a request is answered from now on: `exchange` itself, unless its
        key is captured. A WebSocket and a form (audio, pictures) are never."""
        if not self._running or self._live(key_id) is None or exchange.websocket_key:
            return exchange
        if exchange.request.header(b"content-type").lower().startswith(b"multipart/"):
            return exchange
        captured = self._kept[record.request_id] = Captured(record, key_id)
        if len(self._kept) > MAX_REQUESTS:
            self._wipe(next(iter(self._kept)))
        return _WatchedExchange(exchange, captured, self)

    def took(self, captured: Captured, part: bytearray, data: bytes) -> bool:
        """Add `data` to a part of `captured`, as far as there is room. False: it was cut."""
        if not captured.kept:
            return True
        room = MAX_PART_BYTES - len(part)
        part += data[:room]
        self._total += min(room, len(data))
        while self._total > MAX_TOTAL_BYTES:
            self._wipe(next(iter(self._kept)))
        return len(data) <= room

    def _live(self, key_id: str) -> _Running | None:
        """The capture of a key; one whose time is over is wiped, even if its timer is late."""
        running = self._running.get(key_id)
        if running is not None and running.ends_at <= self._clock():
            self.end(key_id)
            return None
        return running

    def _end_due(self, key_id: str) -> None:
        self.end(key_id)

    def _wipe(self, request_id: str) -> None:
        captured = self._kept.pop(request_id)
        self._total -= captured.size
        captured.kept = False
        for part in (captured.prompt, captured.answer):
            part[:] = bytes(len(part))  # what was there is overwritten before it is given back
            part.clear()


class _WatchedExchange(WrappedExchange):
    """An exchange whose two bodies are captured as they pass."""

    def __init__(self, inner: Exchange, captured: Captured, captures: Captures) -> None:
        super().__init__(inner)
        self._captured = captured
        self._captures = captures

    async def read(self) -> bytes:
        """See `Exchange`."""
        data = await self.inner.read()
        self._captured.prompt_read = self._captured.prompt_read or not data
        if data and not self._captures.took(self._captured, self._captured.prompt, data):
            self._captured.prompt_cut = True
        return data

    def write(self, data: bytes) -> None:
        """See `Exchange`."""
        self.inner.write(data)
        if not self._captures.took(self._captured, self._captured.answer, data):
            self._captured.answer_cut = True
