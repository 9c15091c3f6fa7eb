"""An origin may be a unix socket, and a new connection may be refused before a byte is sent."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from wai_node.config import UpstreamConfig
from wai_node.upstreams import upstream_at
from wai_protocol.errors import Fault, RequestError, TransportError
from wai_transport.http_client import HttpClient
from wai_transport.origin import MAX_SOCKET_PATH_BYTES, Origin

LISTED = b'{"data": [{"id": "m"}]}'


class Listener:
    """Answers each request with a list of models, and keeps what came."""

    def __init__(self) -> None:
        self.seen = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # a peer that refuses us aborts
            while data := await reader.read(65536):
                self.seen += data
                found = b"GET /v1/models " in data
                status, body = (b"200 OK", LISTED) if found else (b"404 Not Found", b"")
                head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
                writer.write(head + body)
        writer.transport.abort()


@pytest.mark.anyio
async def test_an_upstream_may_be_named_by_its_unix_socket(tmp_path: Path) -> None:
    listener = Listener()
    path = tmp_path / "a.sock"
    server = await asyncio.start_unix_server(listener.serve, path)
    url = UpstreamConfig(f"unix://{path}").url
    upstream = await upstream_at(url, "its-key")
    assert upstream.name == f"openai@unix:{path}"
    assert [model.id for model in (await upstream.probe()).models] == ["m"]
    assert b"host: localhost\r\n" in listener.seen.lower()
    server.close()
    await upstream.aclose()


@pytest.mark.anyio
async def test_a_socket_that_nobody_listens_at_any_more_is_a_plain_error(tmp_path: Path) -> None:
    client = HttpClient(Origin("unix", str(tmp_path / "gone.sock"), 0))
    with pytest.raises(TransportError, match=r"unix:///.*gone\.sock can't be reached"):
        await client.fetch("GET", "/", limit_bytes=1, timeout_s=5)
    await client.aclose()


@pytest.mark.anyio
async def test_a_peer_that_is_refused_is_sent_nothing() -> None:
    listener = Listener()
    server = await asyncio.start_server(listener.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ports: list[int | None] = []

    def refuse(ours: int | None) -> None:
        ports.append(ours)
        raise TransportError("not this one", Fault.UPSTREAM_UNREACHABLE)

    client = HttpClient(Origin("http", "127.0.0.1", port), check_peer=refuse)
    for _ in range(3):
        with pytest.raises(TransportError, match="not this one"):
            await client.fetch("GET", "/v1/models", limit_bytes=100, timeout_s=5)
    client.check_peer = ports.append
    assert (await client.fetch("GET", "/v1/models", limit_bytes=100, timeout_s=5))[0] == 200
    assert (await client.fetch("GET", "/v1/models", limit_bytes=100, timeout_s=5))[0] == 200
    assert len(set(ports)) == 4, "once for each connection, not for each request"
    assert listener.seen.count(b"GET ") == 2
    await client.aclose()
    server.close()


@pytest.mark.parametrize(
    ("url", "path"), [("unix:///run/a.sock", "/run/a.sock"), ("unix:///a b", "/a b")]
)
def test_a_url_of_a_socket_is_read(url: str, path: str) -> None:
    origin, base = Origin.parse(url)
    assert (origin, base) == (Origin("unix", path, 0), "")
    assert (str(origin), origin.place, origin.authority) == (url, f"unix:{path}", "localhost")


@pytest.mark.parametrize("url", ["unix:a.sock", "unix://host/a", "unix:///a\0b", "ftp://a"])
def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(RequestError):
        Origin.parse(url)


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(RequestError, match=f"at most {MAX_SOCKET_PATH_BYTES} bytes"):
        Origin.parse("unix:///" + "é" * 60)
