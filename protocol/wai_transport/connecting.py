"""Connect to a host by name, trying all of its addresses (see `address_race`).

An event loop's own `create_connection` dials the addresses one after another, and uvloop ignores
its `happy_eyeballs_delay`. So the socket is connected here and then passed to `create_connection`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import uvloop

from .address_race import Address, AddressRace, open_socket, ordered

RESOLVE_S: Final = 5.0
"""Limit for resolving a name. The system's resolver asks the next name server after 5 s; by then a
new attempt of the caller is as good."""

RESOLVE_WITH_KNOWN_S: Final = 1.0
"""Limit for resolving a name of which an address is known already; most take less than 0.1 s."""

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

Prepare = Callable[[socket.socket, Address], None]
"""Sets the options of a socket before it is connected to an address."""


class SilentPeer(TimeoutError):
    """The TCP connection was made, but the peer sent nothing in time."""


async def create_connection(
    factory: Callable[[], _P],
    host: str,
    port: int,
    *,
    limit_s: float,
    tls: ssl.SSLContext | None = None,
    tls_limit_s: float | None = None,
    server_hostname: str | None = None,
    prepare: Prepare | None = None,
    redial_s: float | None = None,
    known: Sequence[Address] = (),
) -> tuple[asyncio.Transport, _P]:
    """Connect to `host:port` and make a protocol with `factory`, with TLS if `tls` is given.

    `limit_s` bounds the whole, in seconds; if `tls_limit_s` is given, TLS has this time of its own.
    The other arguments are those of `connect`. Raises `SilentPeer` if TLS takes too long, `OSError`
    as `connect` does, and `ssl.SSLError`.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + limit_s
    name = (server_hostname or host) if tls is not None else None
    if prepare is None and redial_s is None and _is_address(host):
        # There is only one address: the loop's own way takes 80 µs less for a connection.
        try:
            async with asyncio.timeout_at(ends_at):
                return await loop.create_connection(
                    factory, host, port, ssl=tls, server_hostname=name
                )
        except TimeoutError as error:
            if error.errno is not None:
                raise  # the kernel's own time-out, not that of `timeout_at`
            raise TimeoutError(errno.ETIMEDOUT, "no answer") from None
    sock = await connect(
        host, port, limit_s=limit_s, prepare=prepare, redial_s=redial_s, known=known
    )
    if tls_limit_s is not None:
        ends_at = loop.time() + tls_limit_s
    try:
        async with asyncio.timeout_at(ends_at):
            return await loop.create_connection(factory, sock=sock, ssl=tls, server_hostname=name)
    except TimeoutError:
        raise SilentPeer(
            errno.ETIMEDOUT, "it accepted the connection, and then sent nothing"
        ) from None
    finally:
        # uvloop closes the descriptor itself. If the peer resets the connection before the
        # transport is returned, the socket object still has the descriptor's number, and would
        # later close whatever file has that number by then.
        if isinstance(loop, uvloop.Loop):
            sock.detach()


async def connect(
    host: str,
    port: int,
    *,
    limit_s: float,
    prepare: Prepare | None = None,
    redial_s: float | None = None,
    known: Sequence[Address] = (),
) -> socket.socket:
    """Return a non-blocking socket that is connected to `host:port`.

    `limit_s`: the limit for the whole, in seconds. `prepare`: called for each new socket.
    `redial_s`: see `AddressRace`. `known`: recent addresses of the name, used if the resolver does
    not answer within `RESOLVE_WITH_KNOWN_S`: after an outage of the network the resolver is often
    the last to work again.

    Raises `socket.gaierror` for an unknown name, `TimeoutError` after `limit_s`, and `OSError` with
    the reason of each address.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + limit_s
    try:
        resolve_s = RESOLVE_WITH_KNOWN_S if known else RESOLVE_S
        addresses = await _resolve(host, port, min(resolve_s, limit_s))
    except OSError:
        if not known:
            raise
        addresses = list(known)
    race = AddressRace(addresses, loop.time(), redial_s=redial_s)

    async def dial(address: Address) -> socket.socket:
        sock = open_socket(address)
        try:
            if prepare is not None:
                prepare(sock, address)
            await loop.sock_connect(sock, address.sockaddr)
        except BaseException:
            sock.close()
            raise
        return sock

    try:
        async with asyncio.timeout_at(ends_at):
            return await first_connected(race, dial)
    except TimeoutError:
        raise race.error() from None


async def first_connected(
    race: AddressRace, dial: Callable[[Address], Awaitable[socket.socket]]
) -> socket.socket:
    """Run `race` with `dial`; return the first connected socket, and close all others.

    Raises `race.error()` once every address has failed.
    """
    loop = asyncio.get_running_loop()
    attempts: dict[asyncio.Future[socket.socket], Address] = {}
    winner: socket.socket | None = None
    try:
        while winner is None:
            while (address := race.take(loop.time())) is not None:
                attempts[asyncio.ensure_future(dial(address))] = address
            if race.all_failed:
                raise race.error()
            deadline = race.next_deadline()
            wait_s = None if deadline is None else max(0.0, deadline - loop.time())
            ended, _ = await asyncio.wait(
                attempts, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in ended:
                error = attempt.exception()
                if error is None:
                    winner = attempt.result()
                elif isinstance(error, OSError):
                    race.failed(attempts.pop(attempt), error, loop.time())
                else:
                    raise error
        return winner
    finally:
        await _end(attempts, winner)


async def _end(
    attempts: dict[asyncio.Future[socket.socket], Address], winner: socket.socket | None
) -> None:
    """Cancel the attempts in progress, and close every connected socket except `winner`."""
    pending = [attempt for attempt in attempts if not attempt.done()]
    for attempt in pending:
        attempt.cancel()
    try:
        if pending:
            await asyncio.wait(pending)
    except BaseException:  # cancelled at this moment: the winner will not be returned
        if winner is not None:
            winner.close()
        raise
    finally:
        for attempt in filter(asyncio.Future.done, attempts):
            connected = not attempt.cancelled() and attempt.exception() is None
            if connected and (sock := attempt.result()) is not winner:
                sock.close()


def _is_address(host: str) -> bool:
    """Return whether `host` is an IP address without a scope, which only the resolver can read."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except (OSError, UnicodeError, ValueError):
        return False
    return True


async def lookup(host: str, port: int) -> list[tuple[Any, ...]]:
    """Resolve a name with the system's resolver, in a thread of the event loop."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(found)


async def _resolve(host: str, port: int, limit_s: float) -> list[Address]:
    try:
        async with asyncio.timeout(limit_s):
            found = await lookup(host, port)
    except TimeoutError:
        raise TimeoutError(
            errno.ETIMEDOUT, f"the name {host} was not resolved within {limit_s:g} s"
        ) from None
    return ordered(found)
