"""An HTTP proxy between two real processes: it answers CONNECT, and then forwards bytes.

It connects to loopback whatever name is requested, so that tests can use a name for the relay that
only the proxy resolves. It uses a thread for each direction.
"""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_PIECE_BYTES: Final = 16 << 10
_CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 tests\r\n\r\n"


class ConnectProxy:
    """Listens on 127.0.0.1. `answer`: sent instead of connecting.

    `target_port`: the port that it connects to; None: the requested one.
    `asked` has the first line of each request, `credentials` the credentials of each.
    """

    def __init__(self, user: str | None, answer: bytes | None) -> None:
        self._user = user
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.target_port: int | None = None
        self.asked: list[str] = []
        self.credentials: list[str] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """What `HTTPS_PROXY` is set to, without a user."""
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """Accept until `close`."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve_one, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Stop listening, and end what is open."""
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _serve_one(self, client: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(_PIECE_BYTES)
                if not piece:
                    return
                head += piece
            lines = head.decode().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if line)
            self.asked.append(lines[0])
            self.credentials.append(fields.get("Proxy-Authorization", ""))
            if self._answer is not None:
                client.sendall(self._answer)
                return
            if self._user is not None and self.credentials[-1] != _basic(self._user):
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            asked_port = int(lines[0].split(" ")[1].rpartition(":")[2])
            server = socket.create_connection(("127.0.0.1", self.target_port or asked_port))
            with self._lock:
                self._open.add(server)
            client.sendall(_CONNECTED)
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            _pump(client, server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _basic(user: str) -> str:
    return "Basic " + base64.b64encode(user.encode()).decode()


@contextmanager
def connect_proxy(
    *, user: str | None = None, answer: bytes | None = None
) -> Iterator[ConnectProxy]:
    """Run a proxy; `user` is the "NAME:PASSWORD" that it demands."""
    proxy = ConnectProxy(user, answer)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
