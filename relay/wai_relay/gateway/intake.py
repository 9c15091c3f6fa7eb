"""Takes in a request's body: a JSON body to its end, a form as far as its model's name.

A short body is read in one go. A long one is read as it comes and held (`held_body`), so that it
can be sent again; a form is sent on while the rest of it still comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.surface import Route
from wai_relay.http.exchange import Exchange, Request

from .bodies import BodyFacts, Change, Outgoing, Piece, RequestBody, no_model, read_json
from .body_budget import BodyBudget
from .cut_out import CutOut
from .dialects.dialect import Dialect
from .form_scan import TURN_BYTES, FormModelScanner
from .held_body import HeldBody, Spool
from .json_scan import TURN_WORK, JsonScanner
from .limits import MIB, GatewayLimits
from .long_bodies import LongBody, read_long

# The slowest that a body may come, below the first mobile networks' 4 KiB/s...
LEAST_BYTES_PER_S: Final = 1024
# ... and how far it may fall behind that: the longest silence that the edge allows
# (`edge.BODY_STALL_S`), so that an upload which went quiet may go on. Bytes that come faster make
# up for silence before them, not for silence to come.
MOST_BEHIND_S: Final = 60.0


class Body(msgspec.Struct):
    """What was taken in. `data` is all of a short body; a long one is in `held`. `complete`: no
    more comes. `repeatable`: it may be sent again. `json` is None for a form. `cut`: `data` is a
    long body without its pictures."""

    facts: BodyFacts
    data: bytes
    complete: bool = True
    repeatable: bool = True
    json: RequestBody | None = None
    form: FormModelScanner | None = None
    held: HeldBody | None = None
    cut: CutOut | None = None

    def outgoing(self, change: Change) -> Outgoing:
        """What was taken in, as it goes to an upstream."""
        if self.json is not None:
            return self.json.outgoing(change)
        form, size = self.form, len(self.data) if self.held is None else self.held.size
        if form is None or change.model == self.facts.model:
            return Outgoing((Piece(0, size),))
        model = change.model.encode()
        return Outgoing((Piece(0, form.start), model, Piece(form.end, size)))

    async def pieces(self, outgoing: Outgoing) -> AsyncIterator[bytes]:
        """The bytes of `outgoing`, in order. Raises `WaiError`."""
        for part in outgoing.parts:
            if isinstance(part, bytes):
                yield part
            elif self.held is None:
                yield self.data[part.start : part.end]
            else:
                async for piece in self.held.pieces(part.start, part.end):
                    yield piece

    def in_hand(self, outgoing: Outgoing) -> bytes:
        """The same at once, for a short body."""
        first = outgoing.parts[0]
        if len(outgoing.parts) == 1 and isinstance(first, bytes):
            return first
        return b"".join(
            part if isinstance(part, bytes) else self.data[part.start : part.end]
            for part in outgoing.parts
        )

    def forget(self) -> None:
        """It will not be sent again."""
        self.data = b""
        self.json = None
        self.repeatable = False


class Intake:
    """Reads a request's body. `release` gives back what it holds of the budgets: always call it.

    Without a `spool` nothing is held on disk.
    """

    def __init__(
        self,
        exchange: Exchange,
        dialect: Dialect,
        route: Route,
        key_id: str,
        limits: GatewayLimits,
        budget: BodyBudget,
        clock: Callable[[], float],
        default_model: Callable[[], str | None] = lambda: None,
        *,
        spool: Spool | None = None,
    ) -> None:
        """`default_model` tells what is asked for where the body names no model and need not."""
        self._default_model = default_model
        self._exchange = exchange
        self._key_id = key_id
        self._clock = clock
        self._behind_s = 0.0
        self._route = route
        self._dialect = dialect
        self._limits = limits
        self._budget = budget
        self._spool = spool or Spool(None, 0)
        self._taken = 0
        self._size = 0
        self._form: FormModelScanner | None = None
        self._held: HeldBody | None = None
        self.holds_all = True
        """Whether all that was read is still held."""

    async def take(self) -> Body:
        """The body, as far as it is needed. Raises `WaiError` with what the caller can do."""
        if not self._route.has_body:
            facts = BodyFacts(self._default_model() or no_model(), whole=True)
            return Body(facts, b"", complete=True, repeatable=True)
        self._check_head(self._exchange.request)
        if self._form is not None:
            return await self._take_form(self._form)
        if (self._exchange.request.content_length or 0) > self._limits.routing_body_bytes:
            return await self._take_long(await self._read())
        pieces: list[bytes] = []
        while data := await self._read():
            if self._is_long or not self._has_room(len(data)):
                return await self._take_long(b"".join((*pieces, data)))
            pieces.append(data)
            if self._exchange.at_end:
                break
        whole = b"".join(pieces)
        read = read_json(whole, self._dialect, self._route, self._default_model)
        return Body(read.facts, read.data, json=read)

    async def _take_long(self, data: bytes) -> Body:
        """A JSON body that begins with `data`, and is too long to be read in one go."""
        self._give_back()
        held = self._held = HeldBody(self._key_id, self._budget, self._spool)
        scanner = JsonScanner(self._dialect)
        while data:
            await held.add(data)
            at = 0
            while at < len(data):
                at = scanner.feed(data, at)
                if scanner.work >= TURN_WORK:  # every other caller has a turn in between
                    scanner.work = 0
                    await asyncio.sleep(0)
            data = await self._read()
        read = read_long(scanner, held.size, self._dialect, self._route, self._default_model)
        return Body(read.facts, b"", json=read, held=held)

    async def _take_form(self, scanner: FormModelScanner) -> Body:
        """A form up to its model, and to its end if that is near."""
        held: HeldBody | None = None
        pieces: list[bytes] = []
        complete = False
        while not (self._is_long and scanner.model is not None):
            data = await self._read()
            if not data:
                complete = True
                break
            await self._scan_form(data)
            if held is None and (self._is_long or not self._has_room(len(data))):
                self._give_back()
                held = self._held = HeldBody(self._key_id, self._budget, self._spool)
                await held.add(b"".join((*pieces, data)))
                pieces.clear()
            elif held is not None:
                await held.add(data)
            else:
                pieces.append(data)
        if scanner.model is None:
            no_model()
        # Nobody knows what stands further on, so the caller's stream is taken for what it wants.
        size = max(self._size, self._exchange.request.content_length or 0)
        facts = BodyFacts(scanner.model, wants_usage=True, size_bytes=size)
        return Body(facts, b"".join(pieces), complete=complete, form=scanner, held=held)

    async def decodable(self, body: Body) -> Body:
        """`body` with all of it in `data`, so that every field can be read; a long one without its
        pictures, which stay where they are held (`cut`)."""
        held = body.held
        if held is None or not isinstance(body.json, LongBody):
            return body
        start = body.json.start
        cut = CutOut(body.json.blobs, start, held.size)
        if cut.rest.size <= self._limits.routing_body_bytes:
            self._hold(cut.rest.size)
            data = b"".join([piece async for piece in body.pieces(cut.rest)])
            return Body(body.facts, data, json=body.json, held=held, cut=cut)
        self._hold(held.size)
        data = await held.whole()
        held.close()
        return Body(body.facts, data[start:], json=body.json)

    async def rest(self) -> bytes:
        """The next piece of what `take` has left, b"" at the end. It is held too, while there is
        room; see `holds_all`."""
        data = await self._read()
        held, self.holds_all = self._held, False  # until it was seen: this may be cancelled
        if data and held is not None:
            try:
                await held.add(data)
            except WaiError:
                held.close()
                self._held = held = None
        if data:
            await self._scan_form(data)
        self.holds_all = held is not None
        return data

    async def _scan_form(self, data: bytes) -> None:
        """Let the scanner see `data`, and every other caller have a turn in between."""
        if self._form is None:
            return
        for start in range(0, len(data), TURN_BYTES):
            if start:
                await asyncio.sleep(0)
            self._form.feed(data[start : start + TURN_BYTES])

    def release(self) -> None:
        """What was held is held no more. Idempotent."""
        self._give_back()
        if self._held is not None:
            self._held.close()

    def _has_room(self, n: int) -> bool:
        """Hold `n` bytes more in memory, if there is room."""
        try:
            self._hold(n)
        except WaiError:
            if not self._spool.budget.limit_bytes:
                raise
            return False
        return True

    def _hold(self, n: int) -> None:
        self._budget.take(self._key_id, n)
        self._taken += n

    def _give_back(self) -> None:
        if self._taken:
            self._budget.give(self._key_id, self._taken)
        self._taken = 0

    @property
    def _is_long(self) -> bool:
        return self._size > self._limits.routing_body_bytes

    def _check_head(self, request: Request) -> None:
        if (request.content_length or 0) > self._limits.body_bytes:
            raise self._too_large()
        if b"content-encoding" in request.index and not all(
            _is_identity(value) for name, value in request.headers if name == b"content-encoding"
        ):
            raise RequestError(
                "Compressed request bodies are not understood; send the body as it is.",
                Fault.ENCODING_UNSUPPORTED,
            )
        content_type = request.header(b"content-type")
        if content_type[:19].lower() == b"multipart/form-data":
            self._form = FormModelScanner(content_type, self._dialect.model_fields[0])

    async def _read(self) -> bytes:
        asked_at = self._clock()
        data = await self._exchange.read()
        if not data:
            return data
        self._size += len(data)
        self._check_pace(len(data), self._clock() - asked_at)
        if self._size > self._limits.body_bytes:
            raise self._too_large()
        return data

    def _check_pace(self, n: int, waited_s: float) -> None:
        """`n` bytes came after a wait for the caller. What the upstream takes does not count."""
        self._behind_s = max(self._behind_s + waited_s - n / LEAST_BYTES_PER_S, 0.0)
        if self._behind_s > MOST_BEHIND_S:
            raise RequestError(
                "The request body comes too slowly: send at least"
                f" {LEAST_BYTES_PER_S} bytes a second.",
                Fault.TIMED_OUT,
            )

    def _too_large(self) -> RequestError:
        limit = self._limits.body_bytes // MIB
        return RequestError(f"The request body is over {limit} MiB.", Fault.BODY_TOO_LARGE)


def _is_identity(codings: bytes) -> bool:
    """Whether a Content-Encoding field says that nothing was done to the body."""
    return all(coding.strip().lower() in (b"", b"identity") for coding in codings.split(b","))
