"""What messages are posted to, and its bad relatives: slow, refusing, redirecting, endless."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import trustme

from .threaded_server import Quiet, QuietServer, serving


@dataclass(slots=True)
class HookServer:
    """A running one. `answer`: a status, or how it misbehaves: "silent", "drips", "endless" (a 200
    whose body has no end), "endless error". `seen`: path, headers (in lower case) and body."""

    port: int = 0
    ca_file: Path | None = None
    answer: int | str = 200
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where it is."""
        host = "127.0.0.1" if self.ca_file is None else "localhost"
        return f"{'http' if self.ca_file is None else 'https'}://{host}:{self.port}"

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait for so many requests."""
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.seen) >= count, timeout_s)
        assert came, f"{len(self.seen)} requests came, not {count}"


@contextmanager
def hook_server(folder: Path | None = None) -> Iterator[HookServer]:
    """Serve until the end of the block; by TLS if there is a `folder` for its authority."""
    state = HookServer()
    server = QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    state.port = server.server_port
    if folder is not None:
        authority = trustme.CA()
        state.ca_file = folder / "hook-ca.pem"
        authority.cert_pem.write_to_path(str(state.ca_file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "hook.test").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        try:
            yield state
        finally:
            state.over.set()


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HookServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.state.changed:
            self.state.seen.append((self.path, headers, body))
            self.state.changed.notify_all()
        match self.state.answer:
            case "silent":
                self.state.over.wait()
            case "drips":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not self.state.over.wait(0.05):
                    self.wfile.write(b"x")
            case "endless" | "endless error":
                self.send_response(200 if self.state.answer == "endless" else 500)
                self.end_headers()
                while not self.state.over.is_set():
                    self.wfile.write(b"x" * 65536)
            case int(status):
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("location", "/elsewhere")
                said = b'{"error": "unauthorized\x1b[2J"}' if status >= 400 else b""
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
