"""Connecting to a host by name: every address of it gets its chance (`address_race`).

An event loop's own `create_connection` dials one address after the other, or takes a delay that
uvloop ignores; so the socket is connected here, and handed to it.
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
"""The system's resolver asks the next name server after 5 s; a second try of ours begins anew."""

KNOWN_AFTER_S: Final = 1.0
"""How long the resolver may take where we know an address already; most answer within 0.1 s."""

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

Prepare = Callable[[socket.socket, Address], None]
"""Sets options of a socket that is about to be connected to an address."""


class SilentPeer(TimeoutError):
    """A connection stands, but nothing came over it in time."""


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
    again_s: float | None = None,
    known: Sequence[Address] = (),
) -> tuple[asyncio.Transport, _P]:
    """`connect`, then what the loop's `create_connection` does, with TLS where `tls` is given.

    All of it within `limit_s`; where `tls_limit_s` is given, TLS has this time of its own. Raises
    `SilentPeer` if TLS takes longer, `OSError` (see `connect`) and `ssl.SSLError`.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + limit_s
    name = (server_hostname or host) if tls is not None else None
    if prepare is None and again_s is None and _is_address(host):
        # There is no choice to make; the loop alone takes 80 µs less for a connection.
        try:
            async with asyncio.timeout_at(ends_at):
                return await loop.create_connection(
                    factory, host, port, ssl=tls, server_hostname=name
                )
        except TimeoutError as error:
            if error.errno is not None:
                raise  # the kernel's
            raise TimeoutError(errno.ETIMEDOUT, "no answer") from None
    sock = await connect(host, port, limit_s=limit_s, prepare=prepare, again_s=again_s, known=known)
    if tls_limit_s is not None:
        ends_at = loop.time() + tls_limit_s
    try:
        async with asyncio.timeout_at(ends_at):
            return await loop.create_connection(factory, sock=sock, ssl=tls, server_hostname=name)
    except TimeoutError:
        raise SilentPeer(errno.ETIMEDOUT, "it took the connection, and said no more") from None
    finally:
        # uvloop closes the descriptor itself, but lets the socket keep its number if the peer
        # resets the connection before the transport is ours; it would close what has that next.
        if isinstance(loop, uvloop.Loop):
            sock.detach()


async def connect(
    host: str,
    port: int,
    *,
    limit_s: float,
    prepare: Prepare | None = None,
    again_s: float | None = None,
    known: Sequence[Address] = (),
) -> socket.socket:
    """A socket that is connected to `host:port`, non-blocking. `again_s`: see `AddressRace`.

    `known`: addresses that the name had lately, for when the resolver says nothing within
    `KNOWN_AFTER_S`: after an outage of the network it often is the last to be back.

    Raises `socket.gaierror` for a name that is not known, `TimeoutError` after `limit_s`, and
    `OSError` with what each address met.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + limit_s
    try:
        addresses = await _resolve(host, port, min(KNOWN_AFTER_S if known else RESOLVE_S, limit_s))
    except OSError:
        if not known:
            raise
        addresses = list(known)
    race = AddressRace(addresses, loop.time(), again_s=again_s)

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
    """Run `race` with `dial`; the first socket, and every other one is closed.

    Raises `race.error()` once every address has failed.
    """
    loop = asyncio.get_running_loop()
    attempts: dict[asyncio.Future[socket.socket], Address] = {}
    winner: socket.socket | None = None
    try:
        while winner is None:
            while (address := race.take(loop.time())) is not None:
                attempts[asyncio.ensure_future(dial(address))] = address
            if race.lost:
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
    """Stop the attempts that are under way, and close what they have connected beside `winner`."""
    pending = [attempt for attempt in attempts if not attempt.done()]
    for attempt in pending:
        attempt.cancel()
    try:
        if pending:
            await asyncio.wait(pending)
    except BaseException:  # given up at this moment: nobody takes the winner any more
        if winner is not None:
            winner.close()
        raise
    finally:
        for attempt in filter(asyncio.Future.done, attempts):
            connected = not attempt.cancelled() and attempt.exception() is None
            if connected and (sock := attempt.result()) is not winner:
                sock.close()


def _is_address(host: str) -> bool:
    """Whether the host is an IP address, with its digits alone: a scope is the resolver's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except (OSError, UnicodeError, ValueError):
        return False
    return True


async def lookup(host: str, port: int) -> list[tuple[Any, ...]]:
    """What the system's resolver says, in a thread of the loop's."""
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
