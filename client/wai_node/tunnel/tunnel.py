"""One tunnel: keep a session to the relay alive over a sequence of connections.

The tunnel dials, attaches the connection to the session, and dials again when it is lost: at once
after a loss, a clock jump or a change of address, then with the waits of `backoff`, without end.
When the relay sends GOAWAY, the session finishes its streams, and a new session is started
beside it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Final, Protocol

from msgspec.structs import replace

from wai_protocol.errors import RemoteProtocolError, TransportError, WaiError
from wai_protocol.events import Event, GoAwayReceived
from wai_protocol.handshake import Hello, Welcome
from wai_protocol.identity import NodeKey
from wai_protocol.limits import TURN_COST, Limits
from wai_protocol.session import Role, Session
from wai_transport.address_race import Address
from wai_transport.live_session import Ended, LiveSession

from .backoff import Backoff
from .black_hole import is_black_hole, path_state
from .dial import Connected, RelayAddress, Stalled, Terms, dial, is_final
from .network import ANY_ROUTE, NetworkRoute
from .segments import HEADERS_BYTES, SMALLEST_BYTES, Segments

REFUSED_WAIT_S: Final = 5.0
"""Shortest wait after a refusal: a person has to act first, so quick dials are useless."""

_log = logging.getLogger("wai.node")


class TunnelOwner(Protocol):
    """Receives the events of a tunnel's sessions."""

    def on_event(self, session: LiveSession, event: Event) -> None:
        """Handle an event of `session`."""

    def on_session(self, session: LiveSession, welcome: Welcome) -> None:
        """Handle the start of a new session; not called when a session resumes."""

    def on_session_ended(self, session: LiveSession) -> None:
        """Handle the final end of a session; events have reset its streams before."""

    def on_dialled(self, problem: str) -> None:
        """Handle the result of a dial: `problem` says why it failed, "" that it succeeded."""


class Tunnel:
    """Keeps one session to the relay. Call `run` in a task; cancelling it ends the session."""

    def __init__(
        self, address: RelayAddress, key: NodeKey, hello: Hello, owner: TunnelOwner
    ) -> None:
        self._address = address
        self._key = key
        self._hello = hello
        self._owner = owner
        self._backoff = Backoff()
        self._segments = Segments()
        self._wake = asyncio.Event()
        self._moved = False  # the network has changed since the last dial began
        self._dialling: asyncio.Timeout | None = None
        self._known: tuple[Address, ...] = ()
        self._route = ANY_ROUTE
        self._socket: socket.socket | None = None  # of the current connection, or the last one
        self._session: LiveSession | None = None
        self._session_id: bytes | None = None
        self._retired: set[LiveSession] = set()
        self._last_problem = ""
        self._asked_s = 0.0  # the wait that the relay asked for before the next dial
        self._leaving = False

    @property
    def session(self) -> LiveSession | None:
        """The session that gets new streams, if there is one."""
        return self._session

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._session is not None and self._session.attached

    @property
    def route(self) -> NetworkRoute:
        """The route to the relay of the current connection, or of the last one."""
        addresses = None if self._session is None else self._session.addresses
        if addresses is not None:
            self._route = NetworkRoute(*addresses)
            return self._route
        return replace(self._route, ours=None)

    def redial(self) -> None:
        """Dial at once, because the network has changed and the connection or dial may be dead."""
        self._backoff.begin_anew()
        self._segments.begin_anew()
        if self._session is not None:
            self._session.drop_connection()
        if self._dialling is not None:
            self._dialling.reschedule(asyncio.get_running_loop().time())
            self._dialling = None
        self._moved = True
        self._wake.set()

    def look_at_path(self) -> None:
        """Dial again with smaller segments if the path drops the connection's large ones."""
        session = self._session
        if session is None or not session.attached or self._socket is None:
            return
        path = path_state(self._socket)
        if path is None:
            return
        now, asked_at = time.monotonic(), session.core.unanswered_ping_at
        unanswered_s = None if asked_at is None else now - asked_at
        if is_black_hole(path, now - session.core.heard_at, unanswered_s):
            self._segments.found_too_large(asyncio.get_running_loop().time())
            _log.warning(
                "large packets seem not to get through to or from the relay: dialling again, with"
                " packets of up to %d bytes",
                SMALLEST_BYTES + HEADERS_BYTES,
            )
            session.drop_connection()

    def leave(self) -> None:
        """Dial no more: the relay is gone. `run` returns once there is no connection."""
        self._leaving = True
        if self._dialling is not None:
            self._dialling.reschedule(asyncio.get_running_loop().time())
            self._dialling = None
        self._wake.set()

    def stay(self) -> None:
        """Take back `leave`: the relay is there again. A `run` that has returned is called anew."""
        self._leaving = False

    @property
    def over(self) -> bool:
        """Whether it was left and has nothing open any more."""
        return self._leaving and self._session is None and not self._retired

    async def run(self) -> None:
        """Dial, wait until the connection is lost, and dial again, until cancelled or left.

        Cancelling closes the session. If an error is raised, the session stays open, so that
        another `run` can continue it.
        """
        loop = asyncio.get_running_loop()
        try:
            while not self._leaving or self.connected:
                self._wake.clear()
                wait_s = None if self.connected else await self._try()
                if wait_s is None:
                    await self._wake.wait()
                    self._backoff.lost(loop.time())
                    wait_s = self._backoff.next_wait_s(loop.time(), self._asked_s)
                    self._asked_s = 0.0
                await self._pause(wait_s)
            self._begin_anew()
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close the session, and those that were left to their relay. Idempotent."""
        for session in (self._session, *self._retired):
            if session is not None:
                session.close()

    async def _try(self) -> float | None:
        """Dial once. Return None if connected, else the seconds to wait before the next dial."""
        hello = self._hello
        session = self._session
        if session is not None and session.ended is None:
            hello = replace(hello, session=self._session_id, received=session.core.received)
        now = asyncio.get_running_loop().time
        try:
            connected = await self._dial(hello)
        except WaiError as error:
            if not self._leaving:
                self._say_once(f"{error}")
            if isinstance(error, Stalled):
                self._stalled(now())
            asked_s = error.retry_after_s or (REFUSED_WAIT_S if is_final(error) else 0.0)
            return self._backoff.next_wait_s(now(), asked_s)
        self._segments.answered()
        self._backoff.connected(now(), connected.welcome.limits.session_ttl_s)
        self._last_problem = ""
        try:
            self._take(connected)
        except RemoteProtocolError as error:
            connected.transport.abort()
            self._say_once(f"the relay can't resume: {error}")
            self._begin_anew()
            return self._backoff.next_wait_s(now())
        return None

    async def _dial(self, hello: Hello) -> Connected:
        """Dial, and abandon the dial when the network changes, since no answer could arrive."""
        self._moved = False
        limit = self._segments.limit_bytes(asyncio.get_running_loop().time())
        # Once the session is lost, wait for the resolver: the relay may have a new address.
        known = self._known if hello.session is not None else ()
        terms = Terms(self._backoff.patience_s, limit, known)
        try:
            async with asyncio.timeout(None) as self._dialling:
                return await dial(self._address, self._key, hello, terms=terms)
        except TimeoutError:
            raise TransportError(
                "the relay is gone" if self._leaving else "the network changed during a dial"
            ) from None
        finally:
            self._dialling = None

    def _stalled(self, now: float) -> None:
        self._backoff.stalled()
        if self._segments.stalled(now):
            _log.warning(
                "TCP connects to the relay, but its answers do not arrive; the network may drop"
                " large packets: from now on they have up to %d bytes",
                SMALLEST_BYTES + HEADERS_BYTES,
            )

    def _take(self, connected: Connected) -> None:
        """Resume the session if the relay still has it, or start a new one."""
        welcome, session = connected.welcome, self._session
        resumed = session is not None and session.ended is None and welcome.resumed
        if not resumed:
            self._begin_anew()
            session = self._new_session(welcome)
        assert session is not None
        sock = self._socket = connected.transport.get_extra_info("socket")
        self._known = (Address(sock.family, connected.transport.get_extra_info("peername")),)
        session.attach(
            connected.transport, welcome.received, connected.leftover, peer=welcome.limits
        )
        if not resumed:
            self._owner.on_session(session, welcome)
        self._owner.on_dialled("")
        _log.debug("connected, session %s", "resumed" if resumed else "new")

    def _new_session(self, welcome: Welcome) -> LiveSession:
        limits: Limits = self._hello.limits
        session = LiveSession(
            Session(Role.NODE, local=limits, peer=welcome.limits, turn_cost=TURN_COST),
            on_event=lambda event: self._on_event(session, event),
            on_detached=self._on_detached,
            on_ended=self._on_ended,
            ttl_s=welcome.limits.session_ttl_s,
        )
        self._session, self._session_id = session, welcome.session
        return session

    def _begin_anew(self) -> None:
        """Drop the session, which the relay no longer has, with its open streams."""
        session, self._session, self._session_id = self._session, None, None
        if session is not None:
            session.replace()

    def _on_event(self, session: LiveSession, event: Event) -> None:
        if isinstance(event, GoAwayReceived):
            _log.info("the relay is going away: %s", event.reason)
            self._asked_s = event.reconnect_in_s or 0.0
            self._retire(session)
            return
        self._owner.on_event(session, event)

    def _retire(self, session: LiveSession) -> None:
        """Let the session finish until its relay closes it, and start a new one beside it."""
        if session is self._session:
            self._session, self._session_id = None, None
            self._retired.add(session)
            self._wake.set()

    def _on_detached(self, session: LiveSession) -> None:
        if session is self._session:
            self._wake.set()
        elif session in self._retired:
            session.close()  # its relay process has ended

    def _on_ended(self, session: LiveSession, why: Ended) -> None:
        _log.debug("session ended: %s", why.value)
        self._retired.discard(session)
        if session is self._session:
            self._session, self._session_id = None, None
            self._wake.set()
        self._owner.on_session_ended(session)

    async def _pause(self, wait_s: float) -> None:
        """Wait `wait_s`, or until something asks for a dial at once."""
        if self._moved or self._leaving or (self._wake.is_set() and self.connected):
            return
        self._wake.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _say_once(self, problem: str) -> None:
        """Log a problem once, not again with each failed dial."""
        if problem != self._last_problem:
            _log.warning("%s; trying again until it works", problem)
            self._last_problem = problem
            self._owner.on_dialled(problem)
