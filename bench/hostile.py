"""`python -m bench.hostile`: what callers lose while others send floods of small frames.

A relay runs alone. `--connections` hostile connections (in a process of their own) each send one
kind of flood as fast as the relay reads, and connect again when they are refused. Meanwhile one
innocent caller asks for `/healthz` on a connection of its own, `--seconds` long for each kind.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import h2.connection
from hyperframe.frame import DataFrame, WindowUpdateFrame

from tests.harness.cluster import Cluster, cluster

_PIECE_BYTES: Final = 64 * 1024
_HEAD: Final = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %b\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_SETTLE_S: Final = 1.0  # until all hostile connections are there
_TIMEOUT_S: Final = 30.0
_PAUSE_S: Final = 0.02  # between two requests of the innocent caller


def _chunks(sock: ssl.SSLSocket, secret: bytes) -> None:
    sock.sendall(_HEAD % secret)
    piece = b"1\r\nx\r\n" * (_PIECE_BYTES // 6)
    while True:
        sock.sendall(piece)


def _open_stream(sock: ssl.SSLSocket, secret: bytes) -> None:
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":scheme", "https"),
            (":authority", "relay"),
            ("authorization", f"Bearer {secret.decode()}"),
            ("content-type", "application/json"),
        ],
    )
    sock.sendall(connection.data_to_send())


def _frames(frame: bytes) -> Callable[[ssl.SSLSocket, bytes], None]:
    def flood(sock: ssl.SSLSocket, secret: bytes) -> None:
        _open_stream(sock, secret)
        piece = frame * (_PIECE_BYTES // len(frame))
        while True:
            sock.sendall(piece)

    return flood


KINDS: Final[dict[str, tuple[str, Callable[[ssl.SSLSocket, bytes], None]]]] = {
    "chunks": ("http/1.1", _chunks),
    "data": ("h2", _frames(DataFrame(1, b"x").serialize())),
    "window-update": ("h2", _frames(WindowUpdateFrame(0, window_increment=1).serialize())),
    "closed-stream": ("h2", _frames(DataFrame(1, b"x", flags=["END_STREAM"]).serialize())),
}


def _attack(port: int, kind: str, secret: bytes, count: int) -> None:
    """Flood the relay from `count` connections until this process is killed."""
    alpn, flood = KINDS[kind]
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols([alpn])

    def hold() -> None:
        while True:
            try:
                plain = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
                with tls.wrap_socket(plain) as sock:
                    threading.Thread(target=_drop, args=(sock,), daemon=True).start()
                    flood(sock, secret)
            except OSError:
                continue  # ended by the relay: the next one

    for _ in range(count):
        threading.Thread(target=hold).start()


def _drop(sock: ssl.SSLSocket) -> None:
    try:
        while sock.recv(_PIECE_BYTES):
            pass
    except (OSError, ValueError):
        return  # `hold` ends and replaces it


def _ask(running: Cluster, seconds: float) -> list[float]:
    """Ask for `/healthz` for `seconds`; return how many milliseconds each request took, sorted."""
    caller = http.client.HTTPSConnection(
        "127.0.0.1", running.port, context=running.tls(), timeout=_TIMEOUT_S
    )
    took_ms = []
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            since = time.monotonic()
            caller.request("GET", "/healthz")
            caller.getresponse().read()
            took_ms.append((time.monotonic() - since) * 1000)
            time.sleep(_PAUSE_S)
    finally:
        caller.close()
    return sorted(took_ms)


def _say(kind: str, took_ms: list[float]) -> None:
    p50, p90, p99 = (took_ms[int(len(took_ms) * part)] for part in (0.5, 0.9, 0.99))
    print(
        f"{kind:14} {len(took_ms):4} requests, ms: p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f},"
        f" longest {took_ms[-1]:.1f}",
        flush=True,
    )


def main() -> None:
    """Measure without a flood, then with each kind."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--connections", type=int, default=4, help="hostile ones")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="wai-hostile-") as folder,
        cluster(Path(folder)) as running,
    ):
        secret = running.create_key().secret.encode()
        _say("none", _ask(running, given.seconds))
        for kind in KINDS:
            hostile = multiprocessing.Process(
                target=_attack, args=(running.port, kind, secret, given.connections)
            )
            hostile.start()
            try:
                time.sleep(_SETTLE_S)
                _say(kind, _ask(running, given.seconds))
            finally:
                hostile.kill()
                hostile.join()


if __name__ == "__main__":
    main()
