"""Why a cloud provider can't be used: as its answers show, and a question to it now and then.

While requests go there, they show it. While none does, `GET /models` asks, once a minute, or every
ten seconds while something is wrong; it costs nothing. What a real request meets counts more: some
providers let a key be used for answers and not for that list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from wai_protocol.errors import WaiError
from wai_protocol.surface import Headers
from wai_transport.http_client import HttpClient
from wai_transport.plain_text import shortened

ASK_EVERY_S: Final = 60.0
ASK_AGAIN_S: Final = 10.0  # while something is wrong, so that its end is seen soon
TIMEOUT_S: Final = 10.0
LIST_BYTES: Final = 4 << 20  # a list of some thousand models
REFUSES_US: Final = frozenset({401, 402, 403})
"""How a provider says that it does not accept our key."""
_NOT_IMPLEMENTED: Final = 501  # it has no such list
_MAX_TEXT_CHARS: Final = 200


class Trouble(msgspec.Struct, frozen=True):
    """Why it can't be used. `refused`: it does not accept our key; else it is away."""

    text: str
    refused: bool = False


class ProviderTrouble:
    """What is known of one provider. Belongs to one loop; `close` it."""

    def __init__(
        self,
        client: HttpClient,
        target: str,
        headers: Headers,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`target`: of its list of models. `headers`: those that carry our key."""
        self.now: Trouble | None = None
        self.ahead_s: float | None = None
        """How far its clock is ahead of ours, as it told last."""
        self._client = client
        self._target = target
        self._headers = headers
        self._clock = clock
        self._wall_clock = wall_clock
        self._asked_at: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._by_asking = False
        """Whether `now` is from a question, rather than from a request."""
        self._list_tells_nothing = False
        """The list was refused while requests were not."""

    def answered(self, status: int) -> None:
        """A request was answered."""
        self._asked_at = self._clock()
        if status in REFUSES_US:
            self._refused(status)
        else:
            if self.now is not None and self.now.refused and self._by_asking:
                self._list_tells_nothing = True
            self.now = None
        self._by_asking = False

    def failed(self, error: WaiError) -> None:
        """A request could not be sent there, or met no answer."""
        words = shortened(str(error), _MAX_TEXT_CHARS)
        self.now, self._by_asking = Trouble(f"it can't be used: {words}"), False

    def look(self) -> None:
        """Ask it, if it is time to. It is answered later."""
        now = self._clock()
        every_s = ASK_EVERY_S if self.now is None else ASK_AGAIN_S
        if self._asking is not None or (
            self._asked_at is not None and now - self._asked_at < every_s
        ):
            return
        self._asked_at = now
        self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait((self._asking,))

    async def _ask(self) -> None:
        began = self._wall_clock()
        try:
            status, headers, _ = await self._client.fetch(
                "GET", self._target, self._headers, limit_bytes=LIST_BYTES, timeout_s=TIMEOUT_S
            )
        except WaiError as error:
            self.failed(error)
            return
        finally:
            self._asking = None
        self._note_clock(dict(headers).get(b"date", b""), began)
        if status == 401 and not self._list_tells_nothing:
            self._refused(status)
        elif status >= 500 and status != _NOT_IMPLEMENTED:
            self.now = Trouble(f"it is not well: it answers with status {status}")
        elif self.now is not None and (not self.now.refused or status < 300):
            self.now = None  # it is there; whether it takes our key, other statuses don't tell
        self._by_asking = True

    def _refused(self, status: int) -> None:
        self.now = Trouble(f"it refuses this relay's key (status {status})", refused=True)

    def _note_clock(self, date: bytes, began: float) -> None:
        """Its Date has whole seconds, and was written between our question and now."""
        from email.utils import parsedate_to_datetime  # only with providers

        try:
            told = parsedate_to_datetime(date.decode("latin-1")).timestamp()
        except (ValueError, OverflowError, OSError):
            return
        ended = self._wall_clock()
        self.ahead_s = told - min(max(told, began), ended)
