"""Carries streams that the relay opens to the upstreams beside the node, and the answers back.

The node's own guard stands here: only allow-listed routes leave, with none of the caller's
credentials, whatever the relay asks (SPEC section 7). Push style throughout: a token costs one call
from the upstream's socket to the session. It neither retries on another upstream (the relay does
that) nor reads bodies, except for the speed that llama.cpp writes at an answer's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from wai_node.upstreams.board import Board
from wai_node.upstreams.tally import NOTHING, UNKNOWN, OpenStream, Report, TokensSpent
from wai_node.upstreams.upstream import Upstream, Waited
from wai_protocol.errors import Fault, LocalProtocolError, WaiError
from wai_protocol.surface import (
    REDIRECTED,
    ROUTES,
    Headers,
    Route,
    RouteTable,
    Task,
    headers_for_caller,
    headers_for_upstream,
    is_redirect,
    length_of_answer,
)
from wai_protocol.websocket import protocol_fields, protocols_in
from wai_transport.access_lines import AccessLines
from wai_transport.heap import HeapTrimmer
from wai_transport.http_client import HttpClient
from wai_transport.http_request import ClientRequest

from .access_log import StreamLine
from .answer_figures import spent_by, spent_in, timings_in

MAX_STREAMS: Final = 16_384
"""Streams at a time over all sessions; each is a socket here, so a hostile relay could else exhaust
the process's descriptors. A GPU box answers dozens at once; the rest is idle or queued streams."""
HOLD_BYTES: Final = 64 * 1024
"""A request body that ends within this leaves with its Content-Length, which servers that cannot
read chunks (mlx_lm) need; a larger one streams, with the length that the relay announced, if any.
The same bound as for sending a request again."""
MAX_WHOLE: Final = 256
"""Answers whose cost is kept after their end: a RESET that crossed it asks what it was. More than
end within a way to the relay and back."""
SPENT_EVENT: Final = "spent"
"""The EVENT that tells what a stream took that was reset."""
LOADED_EVENT: Final = "loaded"
"""The EVENT that tells what a stream waited for before its answer."""


class StreamPort(Protocol):
    """What is asked of a `wai_protocol.session.Session`; all are plain calls that never block."""

    def send_headers(self, stream_id: int, status: int, headers: Headers, /) -> None:
        """The answer's head."""

    def send_data(self, stream_id: int, data: bytes, /) -> bool:
        """Part of its body; False: wait for `writable` before more."""

    def end_stream(self, stream_id: int, /) -> None:
        """The answer is whole."""

    def reset_stream(self, stream_id: int, fault: Fault, reason: str, /) -> object:
        """The answer can't be had, or broke."""

    def emit(self, name: str, value: object, /) -> None:
        """Tell the relay of something by an EVENT."""


class SessionPort(Protocol):
    """What is asked of a `LiveSession`. After each call of `core` comes one of `flush`."""

    @property
    def core(self) -> StreamPort:
        """The session's own state."""

    def flush(self) -> None:
        """Have what was asked of `core` sent in this loop turn."""

    def consume(self, stream_id: int, size: int, /) -> None:
        """`size` body bytes were taken: grant as many. Harmless once the stream is over."""


class Accounts(Protocol):
    """Who hears of streams at upstreams: the `Watch`."""

    def started(self, upstream: Upstream, model: str, stream: OpenStream, /) -> None:
        """A stream was opened."""

    def ended(
        self, upstream: Upstream, model: str, stream: OpenStream, spent: TokensSpent, /
    ) -> None:
        """It is over, and told that it took so much. For each `started` comes this or `left`."""

    def left(self, upstream: Upstream, model: str, stream: OpenStream, report: Report, /) -> None:
        """It was given up. Call `report` if it is found out what it took."""

    def measured(
        self, upstream: Upstream, model: str, prefill_tps: float | None, decode_tps: float | None
    ) -> None:
        """An answer told its speed."""


class Forwarder:
    """All streams of all sessions of this node. Belongs to one loop. `routes` are what may be
    asked, and no relay can add to them."""

    def __init__(
        self,
        board: Board,
        accounts: Accounts,
        *,
        routes: RouteTable = ROUTES,
        max_streams: int = MAX_STREAMS,
    ) -> None:
        self._routes = routes
        self._board = board
        self._accounts = accounts
        self._max_streams = max_streams
        self._streams: dict[SessionPort, dict[int, _Forwarded]] = {}
        # those that ended last, oldest first
        self._whole: dict[tuple[SessionPort, int], TokensSpent] = {}
        self._lines = AccessLines()
        self.judges_slots = False
        """Whether streams that find every slot taken are turned away: several relays send here, and
        none sees in time what the others send."""
        self.active_streams = 0
        """Streams open now: for STATUS and leak checks."""
        self._heap_trimmer = HeapTrimmer(
            lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call)
        )

    def opened(
        self,
        session: SessionPort,
        stream_id: int,
        method: str,
        target: str,
        headers: Headers,
        model: str,
        *,
        ended: bool,
    ) -> None:
        """The relay opened a stream. `target` is path with query; `ended`: no body follows."""
        try:
            route, upstream = self._admit(method, target, model)
            length = 0 if ended else _announced_length(headers)
        except WaiError as error:
            session.core.reset_stream(stream_id, error.fault, str(error))
            session.flush()
            return
        streams = self._streams.setdefault(session, {})
        line = StreamLine(self._lines, method, target, headers, model, upstream.name)
        stream = _Forwarded(
            *(session, stream_id, route, upstream, model, line, self._over, self._accounts)
        )
        streams[stream_id] = stream
        self.active_streams += 1
        self._heap_trimmer.update(self.active_streams)
        self._accounts.started(upstream, model, stream)
        passed = headers_for_upstream(headers)
        if route.is_websocket:
            passed += protocol_fields(protocols_in(headers))
        stream.begin(method, target, passed, length)

    def data(self, session: SessionPort, stream_id: int, data: bytes) -> None:
        """Part of the request's body."""
        stream = self._find(session, stream_id)
        if stream is None:  # answered early: the rest goes nowhere, but its credit goes back
            session.consume(stream_id, len(data))
        else:
            stream.body_data(data)

    def ended(self, session: SessionPort, stream_id: int) -> None:
        """The request's body is whole."""
        stream = self._find(session, stream_id)
        if stream is not None:
            stream.body_ended()

    def reset(self, session: SessionPort, stream_id: int) -> None:
        """The caller is gone: the upstream's socket is closed at once. The relay is told what the
        stream took, once that is known."""
        stream = self._find(session, stream_id)
        if stream is not None:
            stream.drop(tell=True)
        elif (spent := self._whole.pop((session, stream_id), None)) is not None:
            tell_spent(session, stream_id, spent, exact=spent.written is not None)

    def failed(self, session: SessionPort, stream_id: int) -> None:
        """The node itself failed on this stream: leave nothing of it behind."""
        stream = self._find(session, stream_id)
        if stream is not None:
            stream.drop()

    def writable(self, session: SessionPort, stream_id: int) -> None:
        """The session takes the answer's bytes again."""
        stream = self._find(session, stream_id)
        if stream is not None:
            stream.resume()

    def lost(self, session: SessionPort) -> None:
        """The session is over: drop all its streams."""
        for stream in list(self._streams.get(session, {}).values()):
            stream.drop()
        for key in [key for key in self._whole if key[0] is session]:
            del self._whole[key]

    def close(self) -> None:
        """Write the lines of the access log that wait."""
        self._lines.close()

    def _find(self, session: SessionPort, stream_id: int) -> _Forwarded | None:
        streams = self._streams.get(session)
        return streams.get(stream_id) if streams is not None else None

    def _admit(self, method: str, target: str, model: str) -> tuple[Route, Upstream]:
        """This request's route and upstream. Raises `WaiError` with what to answer instead."""
        path = target.partition("?")[0]
        route = self._routes.find(method, path)
        if route is None:
            raise WaiError(f"{method} {path[:100]} is not forwarded", Fault.ROUTE_REFUSED)
        if self.active_streams >= self._max_streams:
            raise WaiError(f"the node has {self._max_streams} streams open", Fault.OVERLOADED)
        upstream = self._board.choose(model, route)
        if upstream is not None:
            if self.judges_slots and model and self._board.full(upstream, model):
                raise WaiError("other relays have filled this node", Fault.NODE_FULL)
            return route, upstream
        if self._board.serves(model):
            message = f"the server of {model} has no {route.path}"
            raise WaiError(message, Fault.ROUTE_REFUSED)
        raise WaiError(f"no upstream of this node serves {model!r}", Fault.MODEL_NOT_FOUND)

    def _over(self, stream: _Forwarded, spent: TokensSpent | None = None) -> None:
        """A stream is over; `spent`: its answer was whole, and took that."""
        if spent is not None:
            self._whole[stream.session, stream.id] = spent
            if len(self._whole) > MAX_WHOLE:
                del self._whole[next(iter(self._whole))]
        streams = self._streams[stream.session]
        del streams[stream.id]
        if not streams:
            del self._streams[stream.session]
        self.active_streams -= 1
        self._heap_trimmer.update(self.active_streams)
        stream.end_lease()


class _Forwarded:
    """One stream: the relay's side (`session`, `id`) and the upstream's (`_request`).

    It is the sink of its request. `_over` is called exactly once, before the session is told.
    """

    __slots__ = (
        "_accounts",
        "_before_last",
        "_begin",
        "_body_over",
        "_end_lease",
        "_held",
        "_held_bytes",
        "_last",
        "_length",
        "_line",
        "_on_over",
        "_owed",
        "_request",
        "_route",
        "_status",
        "id",
        "model",
        "session",
        "upstream",
    )

    def __init__(
        self,
        session: SessionPort,
        stream_id: int,
        route: Route,
        upstream: Upstream,
        model: str,
        line: StreamLine,
        on_over: Callable[[_Forwarded, TokensSpent | None], None],
        accounts: Accounts,
    ) -> None:
        self.session = session
        self.id = stream_id
        self.upstream = upstream
        self.model = model
        self._line = line
        self._on_over = on_over
        self._accounts = accounts
        self._request: ClientRequest | None = None
        self._begin: Callable[[int | None], ClientRequest] | None = None
        self._end_lease: Callable[[], None] | None = None
        self._length: int | None = None
        self._body_over = False
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._owed = 0
        self._last = self._before_last = b""
        self._route = route
        self._status = 0

    # -- from the relay

    def begin(self, method: str, target: str, headers: Headers, length: int | None) -> None:
        """Send the request once the upstream is there and its body's length is decided."""
        self._length = length

        if self._route.is_websocket:
            self._length = 0  # nothing comes before the answer

        def ready(client: HttpClient, base_path: str, authorization: Headers) -> None:
            outgoing = headers + authorization

            def send(body_length: int | None) -> ClientRequest:
                if self._route.is_websocket:
                    return client.open_websocket(base_path + target, outgoing, self)
                return client.request(
                    method, base_path + target, outgoing, self, body_length=body_length
                )

            self._begin = send
            self._go()

        self._end_lease = self.upstream.lease(ready, self.on_error, self._tell_loaded)

    def _tell_loaded(self, waited: Waited) -> None:
        """The model was loaded for this request, among others (SPEC section 6)."""
        told = {
            "stream": self.id,
            "load_ms": round(waited.load_s * 1000),
            "room_ms": round(waited.room_s * 1000),
            "made_room": list(waited.made_room),
        }
        self.session.core.emit(LOADED_EVENT, told)
        self.session.flush()

    def end_lease(self) -> None:
        """The upstream is free of this request."""
        if self._end_lease is not None:
            self._end_lease()

    def body_data(self, data: bytes) -> None:
        """Body bytes: held while few, then streamed as fast as the upstream's socket takes them."""
        if self._request is not None:
            self._write(data)
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes <= HOLD_BYTES:
            self.session.consume(self.id, len(data))
        else:  # more is welcome once the upstream takes some
            self._owed += len(data)
            self._go()

    def body_ended(self) -> None:
        """The body is whole; a held one leaves now."""
        self._body_over = True
        if self._request is None:
            self._go()
        else:
            self._end_request()

    def _go(self) -> None:
        """Send what is decided: a length is known, or the body is too long to wait for it."""
        if self._begin is None:
            return
        if self._length is None and not self._body_over and self._held_bytes <= HOLD_BYTES:
            return
        if self._length is None and self._body_over:
            self._length = self._held_bytes
        self._start(self._length)
        if (self._body_over or self._length == 0) and not self._route.is_websocket:
            self._end_request()

    def _end_request(self) -> None:
        if self._request is None:
            return
        try:
            self._request.end()
        except LocalProtocolError as error:
            self._break(Fault.PROTOCOL, str(error))

    def drop(self, *, tell: bool = False) -> None:
        """Nobody wants the answer any more. `tell`: but the relay wants to know what it cost."""
        self._line.cancelled = not self._line.fault
        request = self._let_go()
        self._on_over(self, None)
        self._line.write(self._status)
        if request is None:
            self._accounts.ended(self.upstream, self.model, self, NOTHING)
            if tell:
                tell_spent(self.session, self.id, NOTHING, exact=True)
            return
        request.close()
        report = partial(tell_spent, self.session, self.id) if tell else _tell_nobody
        self._accounts.left(self.upstream, self.model, self, report)

    def resume(self) -> None:
        """The session has room again."""
        if self._request is not None and self._request.reading_paused:
            self._request.resume_reading()

    # -- from the upstream: a ResponseSink

    def on_headers(self, status: int, headers: Headers) -> None:
        """The answer's head."""
        self._status = status
        if is_redirect(status):
            self._break(Fault.UPSTREAM_BROKE, REDIRECTED.format(status))
            return
        passed = headers_for_caller(headers) + length_of_answer(headers)
        if self._route.is_websocket and status < 300:
            if status != 101:
                self._break(Fault.ROUTE_REFUSED, f"the server has no WebSocket {self._route.path}")
                return
            status, passed = 200, protocol_fields(protocols_in(headers))  # SPEC section 5
        try:
            self.session.core.send_headers(self.id, status, passed)
            self.session.flush()
        except LocalProtocolError as error:  # what the upstream sent fits no frame
            self._break(Fault.UPSTREAM_BROKE, str(error))

    def on_data(self, data: bytes) -> None:
        """The hot path: one read of the upstream's socket, to the session."""
        self._before_last, self._last = self._last, data
        session = self.session
        more = session.core.send_data(self.id, data)
        session.flush()
        if not more and self._request is not None:
            self._request.pause_reading()

    def on_end(self) -> None:
        """The answer is whole."""
        tail = self._before_last + self._last
        timings = timings_in(tail)
        if timings is not None:
            self._accounts.measured(
                self.upstream, self.model, timings.read_tps, timings.written_tps
            )
        spent = self._final(spent_by(timings, tail))
        self._let_go()
        self._on_over(self, spent)
        self._accounts.ended(self.upstream, self.model, self, spent)
        self.session.core.end_stream(self.id)
        self.session.flush()
        self._line.write(self._status)

    def on_error(self, error: WaiError) -> None:
        """The answer broke, or can't be had."""
        self._on_over(self, None)
        spent = NOTHING if self._let_go() is None else UNKNOWN
        self._accounts.ended(self.upstream, self.model, self, spent)
        self.session.core.reset_stream(self.id, error.fault, str(error))
        self.session.flush()
        self._line.fault = error.fault.row.openai_code
        self._line.write(self._status)

    # -- for the accounts

    def spent(self) -> TokensSpent:
        """See `OpenStream`."""
        return spent_in(self._before_last + self._last)

    def _final(self, spent: TokensSpent) -> TokensSpent:
        """What a whole answer took that told that it took `spent`."""
        if self._status >= 400:
            return NOTHING if self._status < 500 else UNKNOWN
        if self._route.task is Task.COUNT:
            return NOTHING
        return spent if self._route.generates else spent._replace(written=0)

    # -- inside

    def _let_go(self) -> ClientRequest | None:
        """Forget the request, whose sink this is: else both wait for a garbage collection."""
        request, self._request = self._request, None
        return request

    def _start(self, length: int | None) -> None:
        assert self._begin is not None
        begin, self._begin = self._begin, None
        try:
            request = self._request = begin(length)
        except LocalProtocolError as error:  # what the relay sent is not fit for HTTP
            self._break(Fault.PROTOCOL, str(error))
            return
        request.on_writable = self._pay
        held, self._held = self._held, []
        taken = True
        for data in held:  # bounded by the stream's window
            taken = request.write(data)
        if taken:
            self._pay()

    def _write(self, data: bytes) -> None:
        assert self._request is not None
        self._owed += len(data)
        try:
            taken = self._request.write(data)
        except LocalProtocolError as error:
            self._break(Fault.PROTOCOL, str(error))
            return
        if taken:
            self._pay()

    def _pay(self) -> None:
        """The upstream's socket took what waited: the relay may send as much again."""
        owed, self._owed = self._owed, 0
        if owed > 0:
            self.session.consume(self.id, owed)

    def _break(self, fault: Fault, reason: str) -> None:
        self._line.fault = fault.row.openai_code
        self.drop()
        self.session.core.reset_stream(self.id, fault, reason)
        self.session.flush()


def tell_spent(session: SessionPort, stream_id: int, spent: TokensSpent, *, exact: bool) -> None:
    """Tell the relay what a stream took that it had reset (SPEC section 6)."""
    prompt = None
    if spent.read is not None and spent.cached is not None:
        prompt = spent.read + spent.cached
    told = {
        "stream": stream_id,
        "prompt": prompt,
        "cached": spent.cached,
        "completion": spent.written,
        "exact": exact,
    }
    session.core.emit(SPENT_EVENT, told)
    session.flush()


def _tell_nobody(spent: TokensSpent, *, exact: bool) -> None:
    """The relay is gone, or has heard of the stream's end in another way."""


def _announced_length(headers: Headers) -> int | None:
    """The body's length as the relay announced it, None where it did not."""
    lengths = [value for name, value in headers if name == b"content-length"]
    if not lengths:
        return None
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 15:
        raise WaiError("the announced body length can't be read", Fault.PROTOCOL)
    return int(lengths[0])
