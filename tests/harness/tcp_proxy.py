"""A TCP proxy between two real processes, which resets connections on demand.

It uses a thread for each direction. A cut resets both sides at any byte, as a restarted router
does. Both ends must read, since a thread that can't write delays the cut.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_PIECE_BYTES: Final = 16 << 10
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


class TcpProxy:
    """Listens on 127.0.0.1 and forwards to `target_port` there. Made by `tcp_proxy`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._cut_after: int | None = None
        self.cuts = 0
        self.connections = 0
        self.forwarded_bytes = 0

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`, for `wai node run --relay`."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Reset every connection now."""
        with self._lock:
            pairs = self._take_pairs()
        for pair in pairs:
            _reset(*pair)

    def _cut_if_due(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair not in self._pairs:
                return  # the other direction was faster: the next cut is not this pair's business
            pairs = self._take_pairs()
        for pair in pairs:
            _reset(*pair)

    def _take_pairs(self) -> set[tuple[socket.socket, socket.socket]]:
        """What a cut resets; called with the lock held."""
        self._cut_after = None
        pairs, self._pairs = self._pairs, set()
        self.cuts += bool(pairs)
        return pairs

    def cut_after(self, forwarded: int) -> None:
        """Reset every connection once `forwarded` more bytes, of either direction, have passed."""
        with self._lock:
            self._cut_after = self.forwarded_bytes + forwarded

    @property
    def cut_is_due(self) -> bool:
        """Whether a cut was asked for that has not happened yet."""
        return self._cut_after is not None

    def serve(self) -> None:
        """Accept until `close`."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except ConnectionError:
                _reset(client)
                continue
            pair = (client, server)
            for end in pair:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add(pair)
                self.connections += 1
            for source, target in (pair, pair[::-1]):
                threading.Thread(
                    target=self._pump, args=(source, target, pair), daemon=True
                ).start()

    def close(self) -> None:
        """Stop listening and reset what is open."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self.cut()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        try:
            while data := source.recv(_PIECE_BYTES):
                kept = self._count(len(data), pair)
                target.sendall(data[:kept])
                if kept < len(data):
                    self._cut_if_due(pair)
                    return
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        except OSError:
            with self._lock:
                self._pairs.discard(pair)
            _reset(*pair)

    def _count(self, size: int, pair: tuple[socket.socket, socket.socket]) -> int:
        """Return how many of `size` bytes may pass before a pending cut."""
        with self._lock:
            if pair not in self._pairs:
                return 0  # cut already
            due, self.forwarded_bytes = self._cut_after, self.forwarded_bytes + size
            return size if due is None else max(0, min(size, due - self.forwarded_bytes + size))


def _reset(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            # close() alone would wait for the thread that still reads from it
            end.shutdown(socket.SHUT_RD)
        end.close()


@contextmanager
def tcp_proxy(target_port: int) -> Iterator[TcpProxy]:
    """A running proxy to `127.0.0.1:target_port`."""
    proxy = TcpProxy(target_port)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
