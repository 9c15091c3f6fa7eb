"""A proxy that ends TLS in front of a relay with `--tls off`, as nginx and Caddy do.

It shows a self-signed certificate of its own; a thread for each connection.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wai_relay.certificate import certificate_from_pem, pin_of
from wai_relay.identity import load_self_signed
from wai_transport.folder import DataFolder

_PIECE_BYTES = 16 << 10


class TlsProxy:
    """Listens on 127.0.0.1 with a certificate made in `folder`. Made by `tls_proxy`."""

    def __init__(self, folder: Path, target_port: int) -> None:
        files = load_self_signed(DataFolder.open(folder), [], datetime.datetime.now(datetime.UTC))
        self.pin = pin_of(certificate_from_pem(files.certificate.read_bytes()))
        self.target_port = target_port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(files.certificate, files.key)
        self._context.set_alpn_protocols(["http/1.1"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its public address."""
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Carry one connection. A TLS socket is read and written by two threads, each in one
        direction: its object allows that."""
        with suppress(OSError), client:
            inner = self._context.wrap_socket(client, server_side=True)
            with inner, socket.create_connection(("127.0.0.1", self.target_port)) as relay:
                back = threading.Thread(target=_carry, args=(relay, inner), daemon=True)
                back.start()
                _carry(inner, relay)
                back.join()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tls_proxy(folder: Path, target_port: int) -> Iterator[TlsProxy]:
    """Run one until the end."""
    proxy = TlsProxy(folder, target_port)
    try:
        yield proxy
    finally:
        proxy.close()
