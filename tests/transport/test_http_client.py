"""The HTTP client against an upstream that hangs, lies, dies, or leaves between two requests."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import aclosing

import pytest
import trustme

from tests.harness.connect_proxy import connect_proxy
from tests.harness.raw_upstream import (
    RawUpstream,
    answering,
    ok,
    raw_upstream,
    read_head,
    read_request,
)
from wai_protocol.errors import AuthError, Fault, LocalProtocolError, WaiError
from wai_protocol.surface import Headers
from wai_transport.http_client import HttpClient
from wai_transport.http_proxy import ProxySettings
from wai_transport.http_request import RESEND_BYTES, Timeouts
from wai_transport.origin import Origin
from wai_transport.tls import client_context, spki_sha256

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Recorder:
    """A sink that keeps what came, and can be waited for."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[bytes] = []
        self.error: WaiError | None = None
        self.ended = False
        self.some = asyncio.Event()
        self.over = asyncio.Event()

    def on_headers(self, status: int, headers: Headers) -> None:
        self.status = status

    def on_data(self, data: bytes) -> None:
        self.pieces.append(data)
        self.some.set()

    def on_end(self) -> None:
        self.ended = True
        self.over.set()

    def on_error(self, error: WaiError) -> None:
        self.error = error
        self.over.set()


def client_for(upstream: RawUpstream, timeouts: Timeouts | None = None) -> HttpClient:
    return HttpClient(Origin.parse(upstream.url)[0], timeouts=timeouts)


async def post(client: HttpClient, body: bytes = b"hi") -> Recorder:
    sink = Recorder()
    request = client.request("POST", "/x", [], sink, body_length=len(body))
    request.write(body)
    request.end()
    await sink.over.wait()
    return sink


async def get(client: HttpClient, limit_bytes: int = 1000) -> tuple[int, bytes]:
    status, _, body = await client.fetch("GET", "/", limit_bytes=limit_bytes, timeout_s=30)
    return status, body


async def test_a_kept_alive_connection_is_used_again() -> None:
    async with raw_upstream(answering(ok(b"hello"))) as upstream:
        client = client_for(upstream)
        assert [await get(client) for _ in range(3)] == [(200, b"hello")] * 3
        assert upstream.connections == 1
        assert (client.open_connections, client.idle_connections) == (1, 1)
        await client.aclose()
        assert client.open_connections == 0


async def test_a_connection_that_died_idle_costs_one_silent_retry() -> None:
    async def dies_on_the_second(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(ok(b"one"))
        await read_request(r)  # too late: it closes without a byte of answer

    async with raw_upstream(dies_on_the_second, answering(ok(b"two"))) as upstream:
        client = client_for(upstream)
        first, second = await post(client), await post(client, b"again")
        assert (first.pieces, second.pieces) == ([b"one"], [b"two"])
        assert upstream.connections == 2
        await client.aclose()


async def test_the_retry_happens_once() -> None:
    async def dies(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)

    async def answers_once_then_dies(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(ok(b"one"))
        await read_request(r)

    async with raw_upstream(answers_once_then_dies, dies) as upstream:
        client = client_for(upstream)
        await post(client)
        sink = await post(client)
        assert sink.error is not None
        assert sink.error.fault is Fault.UPSTREAM_BROKE
        assert upstream.connections == 2
        await client.aclose()


async def test_a_request_at_which_its_server_dies_is_not_sent_twice() -> None:
    seen: list[bytes] = []

    async def dies_at_work(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(ok(b"one"))
        seen.append((await read_request(r))[1])
        await asyncio.sleep(0.2)

    async with raw_upstream(dies_at_work, answering(ok(b"two"), seen=seen)) as upstream:
        client = client_for(upstream, Timeouts(resend_s=0.1))
        await post(client)
        sink = await post(client, b"costly")
        assert sink.error is not None
        assert sink.error.fault is Fault.UPSTREAM_BROKE
        assert seen == [b"costly"]
        await client.aclose()


async def test_a_body_too_long_to_be_sent_again_never_meets_a_connection_that_may_be_closing() -> (
    None
):
    async def dies_in_a_second_body(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(ok(b"one"))
        await read_head(r)
        await r.readexactly(RESEND_BYTES)

    async with raw_upstream(dies_in_a_second_body, answering(ok(b"two"))) as upstream:
        client = client_for(upstream)
        await post(client)
        sink = await post(client, b"x" * (RESEND_BYTES + 1))
        assert (sink.error, sink.pieces) == (None, [b"two"])
        assert upstream.connections == 2
        await client.aclose()


async def test_a_connection_that_never_answered_is_not_tried_again_when_new() -> None:
    async def dies(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)

    async with raw_upstream(dies) as upstream:
        client = client_for(upstream)
        sink = await post(client)
        assert sink.error is not None
        assert sink.error.fault is Fault.UPSTREAM_BROKE
        assert upstream.connections == 1
        await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"garbage of some kind\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
    ],
)
async def test_an_answer_that_breaks_off_or_lies_is_never_a_clean_end(answer: bytes) -> None:
    async with raw_upstream(answering(answer, close=True)) as upstream:
        client = client_for(upstream)
        sink = await post(client)
        assert not sink.ended
        assert sink.error is not None
        assert sink.error.fault is Fault.UPSTREAM_BROKE
        await client.aclose()


async def test_all_chunks_of_one_read_come_as_one_piece() -> None:
    wire = CHUNKED + b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"
    async with raw_upstream(answering(wire)) as upstream:
        client = client_for(upstream)
        sink = await post(client)
        assert sink.pieces == [b"hello world"]
        assert client.idle_connections == 1
        await client.aclose()


async def test_a_close_delimited_answer_ends_with_its_connection() -> None:
    wire = b"HTTP/1.0 200 OK\r\n\r\nuntil the end"
    async with raw_upstream(answering(wire, close=True)) as upstream:
        client = client_for(upstream)
        sink = await post(client)
        assert sink.ended
        assert b"".join(sink.pieces) == b"until the end"
        assert client.open_connections == 0
        await client.aclose()


async def test_bytes_behind_an_answer_cost_the_connection() -> None:
    async with raw_upstream(answering(ok(b"x") + b"HTTP/1.1 200 OK\r\n")) as upstream:
        client = client_for(upstream)
        assert await get(client) == (200, b"x")
        assert client.idle_connections == 0
        await client.aclose()


async def test_an_interim_response_is_passed_over() -> None:
    async with raw_upstream(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n", ok(b"x"))) as upstream:
        client = client_for(upstream)
        assert await get(client) == (200, b"x")
        await client.aclose()


async def hang(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
    await r.read()


async def hang_in_the_body(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
    w.write(CHUNKED + b"1\r\na\r\n")
    await r.read()


@pytest.mark.parametrize(("script", "words"), [(hang, "answer"), (hang_in_the_body, "silent")])
async def test_an_upstream_that_hangs_times_out(script: object, words: str) -> None:
    timeouts = Timeouts(first_byte_s=0.05, between_s=0.05)
    async with raw_upstream(script) as upstream:  # type: ignore[arg-type]
        client = client_for(upstream, timeouts)
        sink = await post(client)
        assert sink.error is not None
        assert sink.error.fault is Fault.UPSTREAM_TIMEOUT
        assert words in str(sink.error)
        await upstream.client_left.wait()
        await client.aclose()


async def test_closing_a_request_closes_its_socket_and_says_no_more() -> None:
    async with raw_upstream(hang_in_the_body) as upstream:
        client = client_for(upstream)
        sink = Recorder()
        request = client.request("POST", "/", [], sink)
        request.end()
        await sink.some.wait()
        request.close()
        request.close()
        await upstream.client_left.wait()
        assert not sink.over.is_set()
        assert client.open_connections == 0
        await client.aclose()


async def test_closing_while_connecting_leaves_nothing() -> None:
    async with raw_upstream(hang) as upstream:
        client = client_for(upstream)
        sink = Recorder()
        request = client.request("GET", "/", [], sink)
        request.close()
        await client.aclose()
        assert not sink.over.is_set()
        assert client.open_connections == 0


async def test_closing_the_client_ends_requests_with_an_error() -> None:
    async with raw_upstream(hang) as upstream:
        client = client_for(upstream)
        early, late = Recorder(), Recorder()
        client.request("GET", "/", [], early).end()
        await upstream.client_came.wait()
        client.request("GET", "/", [], late).end()
        await client.aclose()
        assert early.error is not None
        assert late.error is not None


async def test_nobody_listening_is_unreachable() -> None:
    async with raw_upstream(hang) as upstream:
        client = client_for(upstream)
    sink = await post(client)
    assert sink.error is not None
    assert sink.error.fault is Fault.UPSTREAM_UNREACHABLE
    await client.aclose()


async def test_an_idle_connection_is_closed_before_the_server_would() -> None:
    async with raw_upstream(answering(ok(b"x"))) as upstream:
        client = client_for(upstream, Timeouts(idle_s=0.01))
        await get(client)
        await upstream.client_left.wait()
        assert client.open_connections == 0
        await client.aclose()


async def test_a_paused_answer_waits_in_the_upstream() -> None:
    gate = asyncio.Event()

    async def in_two(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await gate.wait()
        w.write(b"b")
        await r.read()

    async with raw_upstream(in_two) as upstream:
        client = client_for(upstream, Timeouts(between_s=0.01))
        sink = Recorder()
        request = client.request("GET", "/", [], sink)
        request.end()
        await sink.some.wait()
        request.pause_reading()
        gate.set()
        await asyncio.sleep(0.05)  # five times the limit between reads: a pause is no fault
        assert sink.pieces == [b"a"]
        assert sink.error is None
        request.resume_reading()
        await sink.over.wait()
        assert sink.pieces == [b"a", b"b"]
        await client.aclose()


async def test_an_upload_waits_for_the_upstreams_socket() -> None:
    gate = asyncio.Event()

    async def slow(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await gate.wait()
        _, body = await read_request(r)
        w.write(ok(b"%d" % len(body)))

    async with raw_upstream(slow) as upstream:
        client = client_for(upstream)
        sink = Recorder()
        request = client.request("POST", "/", [], sink, body_length=None)
        sent = 0
        while request.write(b"x" * 65_536):
            sent += 65_536
            await asyncio.sleep(0)
        sent += 65_536
        assert sent < 32 << 20
        gate.set()
        await request.drain()
        request.end()
        await sink.over.wait()
        assert sink.pieces == [b"%d" % sent]
        await client.aclose()


async def test_an_early_answer_ends_the_upload_and_the_connection() -> None:
    async def refuses(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_head(r)
        w.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await r.read()

    async with raw_upstream(refuses) as upstream:
        client = client_for(upstream)
        sink = Recorder()
        request = client.request("POST", "/", [], sink, body_length=None)
        await sink.over.wait()
        assert (sink.status, sink.ended) == (413, True)
        assert request.write(b"more")
        request.end()
        assert client.idle_connections == 0
        await client.aclose()


def refuse_unread(server: socket.socket, answer: bytes, tls: ssl.SSLContext | None = None) -> None:
    """Answer after the head and close without reading the body: that resets the connection."""
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else close drops the answer
    if tls is not None:
        connection = tls.wrap_socket(connection, server_side=True)
    with connection:
        connection.recv(1024)
        connection.sendall(answer)


REFUSALS = [
    b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\nno",
]


@pytest.mark.parametrize("piece_bytes", [1_000, 20_000, 200_000])
@pytest.mark.parametrize("answer", REFUSALS, ids=["sized", "chunked", "closed"])
async def test_under_tls_an_answer_is_read_though_the_server_closed_without_reading_the_body(
    answer: bytes, piece_bytes: int
) -> None:
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = client_context(None, ["http/1.1"])
    authority.configure_trust(ours)
    with socket.create_server(("127.0.0.1", 0)) as server:
        loop = asyncio.get_running_loop()
        refusing = loop.run_in_executor(None, refuse_unread, server, answer, theirs)
        origin, _ = Origin.parse(f"https://127.0.0.1:{server.getsockname()[1]}")
        client = HttpClient(origin, tls=ours)
        sink = Recorder()
        request = client.request("POST", "/", [], sink, body_length=None)
        while not sink.over.is_set():
            if request.writable:
                request.write(b"x" * piece_bytes)
            await asyncio.sleep(0)
        await refusing
        assert (sink.status, b"".join(sink.pieces), sink.ended) == (
            int(answer.split()[1]),
            b"no",
            True,
        )
        await client.aclose()


@pytest.mark.parametrize("answer", REFUSALS, ids=["sized", "chunked", "closed"])
async def test_an_answer_is_read_though_the_server_closed_without_reading_the_body(
    answer: bytes,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = asyncio.get_running_loop().run_in_executor(None, refuse_unread, server, answer)
        client = HttpClient(Origin.parse(f"http://127.0.0.1:{server.getsockname()[1]}")[0])
        sink = Recorder()
        request = client.request("POST", "/", [], sink, body_length=None)
        request.write(b"x" * 200_000)
        await refusing  # the answer and the reset have come before we write on
        while not sink.over.is_set():
            request.write(b"x" * 200_000)
            await asyncio.sleep(0)
        assert (sink.status, b"".join(sink.pieces), sink.ended) == (
            int(answer.split()[1]),
            b"no",
            True,
        )
        await client.aclose()


async def test_a_good_answer_that_was_cut_by_a_reset_is_not_taken_for_whole() -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf"
    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = asyncio.get_running_loop().run_in_executor(None, refuse_unread, server, answer)
        client = HttpClient(Origin.parse(f"http://127.0.0.1:{server.getsockname()[1]}")[0])
        sink = Recorder()
        request = client.request("POST", "/", [], sink, body_length=None)
        request.write(b"x" * 200_000)
        await refusing
        while not sink.over.is_set():
            request.write(b"x" * 200_000)
            await asyncio.sleep(0)
        assert sink.error is not None
        await client.aclose()


async def test_a_body_that_differs_from_its_length_is_our_bug() -> None:
    async with raw_upstream(hang) as upstream:
        client = client_for(upstream)
        request = client.request("POST", "/", [], Recorder(), body_length=3)
        with pytest.raises(LocalProtocolError):
            request.write(b"four")
        request.write(b"ab")
        with pytest.raises(LocalProtocolError):
            request.end()
        request.close()
        await client.aclose()


async def test_fetch_bounds_what_it_collects_and_how_long() -> None:
    async with raw_upstream(answering(ok(b"x" * 1001), close=True), hang) as upstream:
        client = client_for(upstream)
        with pytest.raises(WaiError) as caught:
            await get(client)
        assert caught.value.fault is Fault.UPSTREAM_BROKE
        await upstream.client_left.wait()
        with pytest.raises(WaiError) as caught:
            await client.fetch("GET", "/", limit_bytes=1, timeout_s=0.01)
        assert caught.value.fault is Fault.UPSTREAM_TIMEOUT
        await client.aclose()


async def tls_server(context: ssl.SSLContext, seen: list[bytes]) -> tuple[asyncio.Server, Origin]:
    async def accept(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        data = await r.read(1000)
        seen.append(data)
        if data:
            w.write(ok(b"secret"))
        w.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    return server, Origin("https", "127.0.0.1", server.sockets[0].getsockname()[1])


async def test_tls_accepts_a_pin_or_an_authority_and_otherwise_sends_nothing() -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(serving)
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    trusting = client_context(None, ["http/1.1"])
    authority.configure_trust(trusting)
    seen: list[bytes] = []
    server, origin = await tls_server(serving, seen)
    async with aclosing(HttpClient(origin, pin=spki_sha256(der))) as pinned:
        assert await get(pinned) == (200, b"secret")
    async with aclosing(HttpClient(origin, tls=trusting)) as by_authority:
        assert await get(by_authority) == (200, b"secret")
    assert len(seen) == 2
    async with aclosing(HttpClient(origin, pin=bytes(32))) as wrong:
        with pytest.raises(AuthError):
            await get(wrong)
    async with aclosing(HttpClient(origin)) as unknown:
        with pytest.raises(WaiError) as caught:
            await get(unknown)
    assert caught.value.fault is Fault.UPSTREAM_UNREACHABLE
    server.close()
    await server.wait_closed()
    assert b"".join(seen[2:]) == b""


async def test_a_fault_of_ours_while_connecting_fails_the_request_and_leaves_nothing() -> None:
    def faulty(port: int | None) -> None:
        raise ZeroDivisionError

    async with raw_upstream(hang) as upstream:
        client = HttpClient(Origin.parse(upstream.url)[0], check_peer=faulty)
        with pytest.raises(WaiError, match="its log says why") as caught:
            await get(client)
        assert caught.value.fault is Fault.INTERNAL
        await upstream.client_left.wait()
        await client.aclose()
        assert client.open_connections == 0


async def test_a_server_behind_a_proxy_is_reached_by_its_name_and_with_its_own_tls() -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("cloud.test").configure_cert(serving)
    trusting = client_context(None, ["http/1.1"])
    authority.configure_trust(trusting)
    server, at = await tls_server(serving, [])
    origin = Origin("https", "cloud.test", at.port)
    with connect_proxy(user="ann:hush") as proxy:
        proxies = ProxySettings(proxy.url.replace("//", "//ann:hush@"))
        async with aclosing(HttpClient(origin, tls=trusting, proxies=proxies)) as client:
            assert await get(client) == (200, b"secret")
        async with aclosing(HttpClient(origin, proxies=proxies)) as unknown:
            with pytest.raises(WaiError, match=r"cloud\.test.*certificate is not valid"):
                await get(unknown)
    assert proxy.asked == [f"CONNECT cloud.test:{at.port} HTTP/1.1"] * 2
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refuses a connection to cloud.test:443"),
        (b"SSH-2.0-OpenSSH\r\n", "which HTTPS_PROXY names, is no HTTP proxy"),
    ],
)
async def test_a_proxy_that_fails_is_named_and_its_password_is_not(
    answer: bytes, said: str
) -> None:
    with connect_proxy(answer=answer) as proxy:
        proxies = ProxySettings(proxy.url.replace("//", "//ann:hush@"))
        origin = Origin("https", "cloud.test", 443)
        async with aclosing(HttpClient(origin, proxies=proxies)) as client:
            with pytest.raises(WaiError, match=said) as caught:
                await get(client)
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(proxies)
