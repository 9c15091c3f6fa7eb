"""Who answers `/`: a browser finds the dashboard, and the clients of Ollama a running relay."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from tests.relay.http.fakes import FakeTransport, decoded, echo
from wai_relay.app import App
from wai_relay.http.edge import Edge
from wai_relay.http.h1 import H1Connection

pytestmark = pytest.mark.anyio


async def _ask(request: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the answer."""
    edge = Edge(App(echo, echo, ready=lambda: (None, 1)).handle)
    connection, transport = H1Connection(edge), FakeTransport()
    connection.connection_made(cast(asyncio.Transport, transport))
    connection.data_received(request + b"\r\nHost: a\r\n\r\n")
    await decoded(connection)
    head, _, body = bytes(transport.written).partition(b"\r\n\r\n")
    connection.connection_lost(None)
    return head, body


async def test_a_browser_is_led_to_the_dashboard() -> None:
    browser = b"GET / HTTP/1.1\r\nAccept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
    head, body = await _ask(browser)
    assert head.startswith(b"HTTP/1.1 303 ")
    assert (b"\r\nlocation: /dashboard/\r\n" in head + b"\r\n", body) == (True, b"")


@pytest.mark.parametrize(("method", "body"), [(b"GET", b"Ollama is running"), (b"HEAD", b"")])
async def test_ollamas_clients_find_a_relay_without_a_key(method: bytes, body: bytes) -> None:
    head, found = await _ask(method + b" / HTTP/1.1")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert (b"content-length: 17" in head, found) == (True, body)


async def test_other_methods_and_paths_are_the_gateways() -> None:
    _, body = await _ask(b"POST / HTTP/1.1\r\nContent-Length: 0")
    assert body == b"/:"
