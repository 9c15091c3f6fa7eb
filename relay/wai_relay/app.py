"""Which part answers a path: the gateway, the admin API, or a word on how the relay is.

The gateway takes everything that nobody else claims, so that an unknown path is refused in the
format that the caller's SDK understands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from wai_protocol.surface import Headers

from .http.edge import Handler
from .http.exchange import Exchange
from .installer import InstallerPages

ADMIN_PREFIXES: Final = ("/admin/", "/dashboard")
DASHBOARD: Final = b"/dashboard/"
RUNNING: Final = b"Ollama is running"  # what its clients look for, before they have a key


class ReadyNode(Protocol):
    """What readiness asks of a node."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""


class Readiness:
    """Whether the relay can serve now, for `GET /readyz`."""

    def __init__(
        self,
        nodes: Callable[[], Iterable[ReadyNode]],
        drained: Callable[[], bool] = lambda: False,
    ) -> None:
        self._nodes = nodes
        self._drained = drained
        self.draining = False

    def state(self) -> tuple[str | None, int]:
        """Why the relay can't serve, or None if it can; and how many nodes can."""
        ready = sum(1 for node in self._nodes() if node.ready)
        if self.draining or self._drained():
            return "draining", ready
        return (None if ready else "no node is ready"), ready


class App:
    """The relay's handler.

    `ready` is `Readiness.state`. `usage` says how the books are kept: a relay that can't write them
    serves all the same. `metrics` answers Prometheus, `installer` machines that want to become
    nodes.
    """

    def __init__(
        self,
        gateway: Handler,
        admin: Handler,
        *,
        ready: Callable[[], tuple[str | None, int]],
        usage: Callable[[], str] = lambda: "written",
        metrics: Handler | None = None,
        installer: InstallerPages | None = None,
    ) -> None:
        self._gateway = gateway
        self._admin = admin
        self._ready = ready
        self._usage = usage
        self._metrics = metrics
        self._installer = installer

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        path = exchange.request.path
        if path.startswith(("/v1/", "/api/")):
            await self._gateway(exchange)
        elif path.startswith(ADMIN_PREFIXES):
            await self._admin(exchange)
        elif path == "/metrics" and self._metrics is not None:
            await self._metrics(exchange)
        elif self._installer is not None and self._installer.answers(path):
            await self._installer.handle(exchange)
        elif path == "/" and exchange.request.method in ("GET", "HEAD"):
            _answer_front_page(exchange)
        elif path == "/healthz":
            _answer(exchange, 200, {"status": "ok"})
        elif path in ("/health", "/v1/health"):  # what llama-server's clients ask for
            _answer_as_model_server(exchange, self._ready()[0])
        elif path == "/readyz":
            problem, nodes = self._ready()
            status = 200 if problem is None else 503
            said = {"status": problem or "ready", "nodes_ready": nodes, "usage": self._usage()}
            _answer(exchange, status, said)
        else:
            await self._gateway(exchange)


def _answer_front_page(exchange: Exchange) -> None:
    """Lead a browser to the dashboard, and tell others what Ollama's clients look for."""
    if b"text/html" in exchange.request.header(b"accept"):
        exchange.start(303, [(b"location", DASHBOARD), (b"content-length", b"0")])
    else:
        exchange.start(
            200, [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(RUNNING))]
        )
        if exchange.request.method != "HEAD":
            exchange.write(RUNNING)
    exchange.end()


def _answer_as_model_server(exchange: Exchange, problem: str | None) -> None:
    """Say in llama-server's words whether requests can be served."""
    if problem is None:
        _answer(exchange, 200, {"status": "ok"})
    else:
        error = {"code": 503, "message": problem, "type": "unavailable_error"}
        _answer(exchange, 503, {"error": error})


def _answer(exchange: Exchange, status: int, value: dict[str, object]) -> None:
    """A health check's answer. It says nothing that a stranger may not know."""
    body = json.dumps(value).encode() + b"\n"
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    exchange.start(status, headers)
    if exchange.request.method != "HEAD":
        exchange.write(body)
    exchange.end()
