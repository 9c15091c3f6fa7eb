"""Connect to a relay without an event loop, trying all its addresses (RFC 8305).

`wai_transport.address_race` has the rules; this module opens the sockets and waits for them.
Importing an event loop would take longer than most commands run.
"""

from __future__ import annotations

import http.client
import os
import selectors
import socket
import ssl
import time

from wai_transport.address_race import Address, AddressRace, open_socket, ordered


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a blocking socket, with this timeout, that is connected to `host:port`.

    Raises `socket.gaierror` for an unknown name, `TimeoutError` after `timeout_s`, and `OSError`
    with the error of each address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    now = time.monotonic()
    race, ends_at = AddressRace(ordered(found), now), now + timeout_s
    with selectors.DefaultSelector() as selector:
        try:
            sock = _first_connected(race, selector, ends_at)
        finally:
            # The winner is no longer registered.
            for key in list(selector.get_map().values()):
                _socket(key).close()
    sock.settimeout(timeout_s)
    return sock


def _first_connected(
    race: AddressRace, selector: selectors.BaseSelector, ends_at: float
) -> socket.socket:
    while (now := time.monotonic()) < ends_at:
        while (address := race.take(now)) is not None:
            _begin(race, selector, address, now)
        if race.all_failed:
            raise race.error()
        deadline = race.next_deadline()
        until = ends_at if deadline is None else min(ends_at, deadline)
        for key, _ in selector.select(max(0.0, until - time.monotonic())):
            sock = _socket(key)
            selector.unregister(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return sock
            sock.close()
            race.failed(key.data, OSError(code, os.strerror(code)), time.monotonic())
    raise race.error()


def _begin(
    race: AddressRace, selector: selectors.BaseSelector, address: Address, now: float
) -> None:
    try:
        sock = open_socket(address)
    except OSError as error:
        race.failed(address, error, now)  # this machine lacks that address family
        return
    try:
        sock.connect(address.sockaddr)
    except BlockingIOError:
        pass  # the connection is in progress
    except OSError as error:
        sock.close()
        race.failed(address, error, now)
        return
    selector.register(sock, selectors.EVENT_WRITE, address)


def _socket(key: selectors.SelectorKey) -> socket.socket:
    sock = key.fileobj
    assert isinstance(sock, socket.socket)
    return sock


class PlainConnection(http.client.HTTPConnection):
    """An HTTP connection whose socket comes from `connect`."""

    def __init__(self, host: str, port: int | None, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the first address that answers."""
        self.sock = connect(self.host, self.port, self._timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class SecureConnection(http.client.HTTPSConnection):
    """An HTTPS connection whose socket comes from `connect`."""

    def __init__(
        self, host: str, port: int | None, timeout_s: float, context: ssl.SSLContext
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._timeout_s = timeout_s
        self._tls = context

    def connect(self) -> None:
        """Connect to the first address that answers, and start TLS."""
        plain = connect(self.host, self.port, self._timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
