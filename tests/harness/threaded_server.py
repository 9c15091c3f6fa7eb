"""An HTTP server in threads, as most of the fakes are: quiet, and gone at the end of a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that hang up, which is what many tests do."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """See the class."""

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.server_port}"


class Quiet:
    """For a `BaseHTTPRequestHandler` that writes no line for each request."""

    def log_message(self, *_: object) -> None:
        """See the class."""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Have a thread serve until the end of the block; then the server is closed."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ServedTogether:
    """A fake of several origins: a context manager in which its `servers` are served."""

    servers: tuple[ThreadingHTTPServer, ...]

    def __enter__(self) -> Self:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
