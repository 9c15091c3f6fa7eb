"""One dial: connect to the relay, authenticate it, and perform the `wai/1` handshake.

TLS with ALPN `wai/1`, or, if a proxy in front of the relay ends TLS and speaks only HTTP, an
HTTP/1.1 `Upgrade` on the same port (SPEC section 2). If an HTTP proxy is configured for this
machine, the connection goes through it (`wai_transport.proxied`). The relay's name is resolved at
each dial, and all its addresses are tried (`wai_transport.connecting`). This module keeps no state:
`tunnel` dials again, and `wai_transport.live_session` holds the session.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import (
    AuthError,
    Fault,
    RemoteProtocolError,
    TransportError,
    WaiError,
)
from wai_protocol.handshake import Hello, NodeHandshake, Welcome
from wai_protocol.identity import NodeKey
from wai_protocol.limits import ALPN
from wai_transport.address_race import Address
from wai_transport.connecting import SilentPeer, create_connection
from wai_transport.http_proxy import Proxy
from wai_transport.origin import Origin
from wai_transport.proxied import create_connection_through
from wai_transport.tls import check_pin, client_context, endpoint_hash

from .segments import USUAL_BYTES

CONNECT_S: Final = 10.0
"""Limit for DNS, TCP and a proxy's answer; the next dial may use another address."""

AGAIN_S: Final = 0.7
"""After this a second connection to a silent address is started beside the first, because the
kernel retransmits a SYN only after 1, 3 and 7 s: a network that is back is noticed sooner."""

HANDSHAKE_S: Final = 15.0
"""Limit from HELLO to WELCOME; the relay itself gives up after 10 s."""

MAX_UPGRADE_BYTES: Final = 8 * 1024
"""Limit for the response head of an Upgrade."""

UPGRADE_PATH: Final = "/wai"


class RelayAddress(msgspec.Struct, frozen=True):
    """Where the relay is, and how to authenticate it.

    `dial` is an address to connect to instead of the URL's. `proxy` is the HTTP proxy for an https
    URL; it is not used together with `dial`.
    """

    url: str
    public: bytes
    pin: bytes | None
    dial: tuple[str, int] | None = None
    proxy: Proxy | None = None


class Terms(msgspec.Struct, frozen=True):
    """Settings of one dial.

    `patience_s`: limit for the TLS handshake, and again for ours. `segment_bytes`: the TCP maximum
    segment size to announce, except to loopback. `known`: addresses that worked recently, used when
    the name can't be resolved.
    """

    patience_s: float = HANDSHAKE_S
    segment_bytes: int = USUAL_BYTES
    known: tuple[Address, ...] = ()


class Stalled(TransportError):
    """TCP connected, but no answer followed in time: packets are lost, or the relay is busy."""


class Connected(msgspec.Struct, frozen=True):
    """The result of a dial. The caller owns the transport and must set its protocol at once."""

    transport: asyncio.Transport
    welcome: Welcome
    leftover: bytes


async def dial(
    address: RelayAddress,
    key: NodeKey,
    hello: Hello,
    invite_secret: bytes | None = None,
    *,
    terms: Terms | None = None,
) -> Connected:
    """Connect to the relay and perform the handshake; `hello.endpoint_hash` is filled in here.

    Raises `TransportError` if it can't connect (`Stalled` if it connected and nothing came),
    `AuthError` if the relay refuses the node or is not the expected relay, and
    `RemoteProtocolError` if the peer speaks another protocol.
    """
    terms = terms or Terms()
    origin, _ = Origin.parse(address.url)
    host, port = address.dial or (origin.host, origin.port)
    secure = origin.scheme == "https"
    context = client_context(address.pin, [ALPN, "http/1.1"]) if secure else None
    proxy = address.proxy if address.dial is None else None
    way = f" through the proxy {proxy}" if proxy is not None else ""
    try:
        if proxy is not None and context is not None:
            transport, connection = await create_connection_through(
                proxy,
                origin,
                _DialledConnection,
                context,
                limit_s=CONNECT_S,
                tls_limit_s=terms.patience_s,
                prepare=_preparation(terms),
                redial_s=AGAIN_S,
                known=terms.known,
            )
        else:
            transport, connection = await create_connection(
                _DialledConnection,
                host,
                port,
                limit_s=CONNECT_S,
                tls=context,
                tls_limit_s=terms.patience_s,
                server_hostname=origin.host,
                prepare=_preparation(terms),
                redial_s=AGAIN_S,
                known=terms.known,
            )
    except SilentPeer:
        raise Stalled(
            f"{host}:{port}{way} accepted a connection, but did not answer to TLS"
        ) from None
    except TimeoutError as error:
        met = f": {error.strerror}" if error.strerror else ""
        raise TransportError(f"no connection to {host}:{port}{way}{met}") from None
    except (OSError, UnicodeError) as error:
        raise TransportError(f"can't connect to {host}:{port}{way}: {_reason(error)}") from error
    try:
        async with asyncio.timeout(terms.patience_s):
            return await _shake_hands(
                transport, connection, address, origin, key, hello, invite_secret
            )
    except TimeoutError:
        transport.abort()
        raise Stalled(f"the relay did not answer within {terms.patience_s:g} s") from None
    except BaseException:
        transport.abort()
        raise


def _preparation(terms: Terms) -> Callable[[socket.socket, Address], None]:
    def prepare(sock: socket.socket, address: Address) -> None:
        if not ipaddress.ip_address(str(address).partition("%")[0]).is_loopback:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, terms.segment_bytes)

    return prepare


async def _shake_hands(
    transport: asyncio.Transport,
    connection: _DialledConnection,
    address: RelayAddress,
    origin: Origin,
    key: NodeKey,
    hello: Hello,
    invite_secret: bytes | None,
) -> Connected:
    tls = transport.get_extra_info("ssl_object")
    direct = False
    if tls is not None:
        if address.pin is not None:
            check_pin(tls, address.pin)
        hello = replace(hello, endpoint_hash=endpoint_hash(tls))
        direct = tls.selected_alpn_protocol() == ALPN
    first = b"" if direct else await _upgrade(connection, origin.authority)
    handshake = NodeHandshake(key, hello, relay_public=address.public, invite_secret=invite_secret)
    welcome = handshake.receive_data(first) if first else None
    while welcome is None:
        if out := handshake.bytes_to_send():
            transport.write(out)
        welcome = handshake.receive_data(await connection.read())
    transport.pause_reading()  # later bytes are for the session, which gets the transport next
    leftover = handshake.leftover() + connection.take()
    return Connected(transport, welcome, leftover)


async def _upgrade(connection: _DialledConnection, authority: str) -> bytes:
    """Turn an HTTP/1.1 connection into a tunnel; return what the relay sent after its 101."""
    connection.transport.write(
        f"GET {UPGRADE_PATH} HTTP/1.1\r\nHost: {authority}\r\n"
        f"Connection: Upgrade\r\nUpgrade: {ALPN}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += await connection.read()
        if len(head) > MAX_UPGRADE_BYTES:
            raise RemoteProtocolError("the head of the answer to Upgrade is too long")
    head, _, rest = head.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if not status.startswith("HTTP/1.1 101"):
        raise RemoteProtocolError(
            f"this is no wai relay, or a proxy in front of it does not pass Upgrade on: {status!r}"
        )
    return rest


class _DialledConnection(asyncio.Protocol):
    """Buffers received bytes until they are read."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._buffer = b""
        self._waiter: asyncio.Future[None] | None = None
        self._lost: WaiError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class is no subclass
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None else ""
        self._lost = TransportError(f"the relay closed the connection in the handshake{reason}")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        """Wait for bytes and return them. Raises `TransportError` when the connection ends."""
        while not self._buffer:
            if self._lost is not None:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.take()

    def take(self) -> bytes:
        """Return the bytes that were received and not read yet."""
        data, self._buffer = self._buffer, b""
        return data


def _reason(error: Exception) -> str:
    """Return one line that tells a person what to do."""
    if isinstance(error, socket.gaierror):
        return f"the name can't be resolved ({error.strerror})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted here ({error.verify_message}); check the relay's"
            " domain, or have a proxy's authority trusted by this machine"
        )
    if isinstance(error, ssl.SSLError):
        return f"it does not speak TLS as expected ({error.reason or 'no reason given'})"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def is_final(error: WaiError) -> bool:
    """Return whether another dial is useless until a person acts: the relay refused the node.

    PROOF_INVALID is not final: somebody else answered in the relay's place, perhaps a captive
    portal, and a later dial can reach the relay.
    """
    return isinstance(error, AuthError) and error.fault is not Fault.PROOF_INVALID
