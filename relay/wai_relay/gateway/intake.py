"""Takes in a request's body as far as routing needs it: whole up to a bound, else up to `model`.

The rest stays with the caller until the upstream takes it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.surface import Route
from wai_relay.http.exchange import Exchange, Request

from .bodies import BodyFacts, JsonBody, no_model, read_json
from .body_scan import FormModelScanner, JsonModelScanner, ModelScanner
from .dialects.dialect import Dialect
from .limits import MIB, GatewayLimits

# The slowest that a body may come, below the first mobile networks' 4 KiB/s...
LEAST_BYTES_PER_S: Final = 1024
# ... and how far it may fall behind that: the longest silence that the edge allows
# (`edge.BODY_STALL_S`), so that an upload which went quiet may go on. Bytes that come faster make
# up for silence before them, not for silence to come.
MOST_BEHIND_S: Final = 60.0

SCAN_BYTES: Final = 16 * 1024
"""Of a long body that are scanned in one turn of the event loop: 5 ms if each is a bracket."""


class BodyBudget:
    """Bounds what all requests together hold of their bodies, and how much of that is one key's.

    A key may hold as much as it leaves free: half of the budget if nobody else holds anything, a
    third each if two keys press, and so on. So there is always room for one that holds nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: Counter[str] = Counter()

    def take(self, key_id: str, n: int) -> None:
        """Hold `n` bytes more for `key_id`, or raise `WaiError` (OVERLOADED)."""
        held_after = self.held_bytes + n
        if held_after > self.limit_bytes:
            raise _overloaded("The relay holds as many request bodies as it may")
        own_after = self._held[key_id] + n
        if own_after > self.limit_bytes - held_after:
            raise _overloaded("The relay holds as many request bodies of this API key as it may")
        self.held_bytes = held_after
        self._held[key_id] = own_after

    def give(self, key_id: str, n: int) -> None:
        """`n` bytes are held no more."""
        self.held_bytes -= n
        self._held[key_id] -= n
        if not self._held[key_id]:
            del self._held[key_id]


def _overloaded(what: str) -> WaiError:
    return WaiError(f"{what}; try again soon.", Fault.OVERLOADED, retry_after_s=1.0)


@dataclass(slots=True)
class Body:
    """What was taken in. `complete`: it is all of it. `repeatable`: it may be sent again."""

    facts: BodyFacts
    held: bytes
    complete: bool
    repeatable: bool
    json: JsonBody | None = None
    scanner: ModelScanner | None = None

    def outgoing(self, model: str, *, ask_usage: bool, ask_timings: bool = False) -> bytes:
        """The bytes in hand, as they go to an upstream that is asked for `model`."""
        if self.json is not None:
            return self.json.rewritten(model, ask_usage=ask_usage, ask_timings=ask_timings)
        scanner = self.scanner
        if scanner is None or model == self.facts.model:
            return self.held
        held = memoryview(self.held)  # copied once: it may have 32 MiB
        return b"".join((held[: scanner.start], scanner.encode(model), held[scanner.end :]))

    def forget(self) -> None:
        """It will not be sent again."""
        self.held = b""
        self.json = None
        self.repeatable = False


class Intake:
    """Reads a request's body. `release` gives back what it holds of the budget: always call it."""

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
        self._taken = 0
        self._size = 0
        self._scanner: ModelScanner | None = None

    async def take(self) -> Body:
        """The body, as far as it is needed. Raises `WaiError` with what the caller can do."""
        if not self._route.has_body:
            facts = BodyFacts(self._default_model() or no_model(), whole=True)
            return Body(facts, b"", complete=True, repeatable=True)
        self._check_head(self._exchange.request)
        pieces: list[bytes] = []
        while data := await self._read(hold=True):
            pieces.append(data)
            if self._scanner is None and self._size > self._limits.routing_body_bytes:
                self._scanner = JsonModelScanner(self._dialect.model_fields[0])
                data = b"".join(pieces)
            if self._scanner is not None:
                await self._scan(data)
                if self._scanner.model is not None and self._is_long:
                    return self._scanned(b"".join(pieces), complete=False)
                if self._size > self._limits.late_model_bytes:
                    raise RequestError(
                        f"`model` must come within the first {self._limits.late_model_bytes // MIB}"
                        " MiB of the body; put it before the long fields.",
                        Fault.BODY_TOO_LARGE,
                    )
        whole = b"".join(pieces)
        if isinstance(self._scanner, FormModelScanner):
            return self._scanned(whole, complete=True)
        read = read_json(whole, self._dialect, self._route, self._default_model)
        return Body(read.facts, whole, complete=True, repeatable=not self._is_long, json=read)

    async def whole(self, body: Body) -> Body:
        """`body`, read to its end, so that every field of it is known. Raises `WaiError`."""
        if body.json is not None or isinstance(self._scanner, FormModelScanner):
            return body
        pieces = [body.held]
        while data := await self._read(hold=True):
            pieces.append(data)
        data = b"".join(pieces)
        read = read_json(data, self._dialect, self._route)
        return Body(read.facts, data, complete=True, repeatable=not self._is_long, json=read)

    async def rest(self) -> bytes:
        """The next piece of what `take` has left, b"" at the end."""
        data = await self._read(hold=False)
        await self._scan(data)
        return data

    async def _scan(self, data: bytes) -> None:
        """Let the scanner see `data`, and every other caller have a turn in between."""
        if self._scanner is None:
            return
        for start in range(0, len(data), SCAN_BYTES):
            self._scanner.feed(data[start : start + SCAN_BYTES])
            await asyncio.sleep(0)

    def release(self) -> None:
        """What was held is held no more. Idempotent."""
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
            self._scanner = FormModelScanner(content_type, self._dialect.model_fields[0])

    async def _read(self, *, hold: bool) -> bytes:
        asked_at = self._clock()
        data = await self._exchange.read()
        if not data:
            return data
        self._size += len(data)
        self._check_pace(len(data), self._clock() - asked_at)
        if self._size > self._limits.body_bytes:
            raise self._too_large()
        if hold:
            self._budget.take(self._key_id, len(data))
            self._taken += len(data)
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

    def _scanned(self, held: bytes, *, complete: bool) -> Body:
        scanner = self._scanner
        if scanner is None or scanner.model is None:
            no_model()
        # Nobody knows what stands further on, so the caller's stream is taken for what it wants.
        size = max(self._size, self._exchange.request.content_length or 0)
        facts = BodyFacts(scanner.model, wants_usage=True, text_bytes=0, size_bytes=size)
        repeatable = complete and not self._is_long
        return Body(facts, held, complete=complete, repeatable=repeatable, scanner=scanner)

    def _too_large(self) -> RequestError:
        limit = self._limits.body_bytes // MIB
        return RequestError(f"The request body is over {limit} MiB.", Fault.BODY_TOO_LARGE)


def _is_identity(codings: bytes) -> bool:
    """Whether a Content-Encoding field says that nothing was done to the body."""
    return all(coding.strip().lower() in (b"", b"identity") for coding in codings.split(b","))
