"""A proxy that is gone for a while is there again, on the same port, and leaves no socket open."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.harness.fault_proxy import FaultProxy, fault_proxy


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """In front of a server that sends one byte to whoever dials it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # shut down, below
                    return
                with connection, suppress(OSError):  # who dialled may be gone
                    connection.sendall(b"x")

        serving = threading.Thread(target=serve)
        serving.start()
        with fault_proxy(server.getsockname()[1]) as running:
            yield running
        server.shutdown(socket.SHUT_RDWR)
        serving.join()


def answer(proxy: FaultProxy) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        return connection.recv(1)


def test_dials_are_refused_until_it_listens_again(proxy: FaultProxy) -> None:
    assert answer(proxy) == b"x"
    proxy.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        answer(proxy)
    proxy.listen_again()
    assert answer(proxy) == b"x"


def test_to_listen_again_changes_nothing_where_it_listens(proxy: FaultProxy) -> None:
    proxy.listen_again()
    assert answer(proxy) == b"x"


def test_it_closes_what_it_accepts_while_it_stops_listening(proxy: FaultProxy) -> None:
    for _ in range(30):
        diallers = [socket.socket() for _ in range(8)]
        for dialler in diallers:
            dialler.connect(("127.0.0.1", proxy.port))
        proxy.stop_listening()
        for dialler in diallers:
            dialler.close()
        proxy.listen_again()
    gc.collect()  # pytest makes an error of each socket that is found open
