"""The way out through a proxy: which one is taken, what it may answer, and what is said of it."""

from __future__ import annotations

import pytest

from tests.harness.connect_proxy import connect_proxy
from wai_node.tunnel import dial as dialling
from wai_node.tunnel.dial import RelayAddress, dial
from wai_protocol.errors import RemoteProtocolError, RequestError, TransportError
from wai_protocol.handshake import Hello
from wai_protocol.identity import NodeKey
from wai_transport.http_proxy import MAX_ANSWER_BYTES, Proxy, ask_to_connect, proxy_for
from wai_transport.origin import Origin

RELAY = Origin("https", "llm.example.com", 443)
PROXY = Proxy("proxy", 3128)


@pytest.mark.parametrize(
    ("url", "host", "port", "credentials"),
    [
        ("http://proxy:3128", "proxy", 3128, None),
        ("proxy:3128", "proxy", 3128, None),
        ("http://proxy/", "proxy", 80, None),
        ("http://[::1]:8080", "::1", 8080, None),
        ("http://ann:s%40cret@proxy:1", "proxy", 1, "Basic YW5uOnNAY3JldA=="),
        ("http://ann@proxy:1", "proxy", 1, "Basic YW5uOg=="),
    ],
)
def test_a_proxy_is_read_as_curl_reads_it(
    url: str, host: str, port: int, credentials: str | None
) -> None:
    assert Proxy.parse(url) == Proxy(host, port, credentials)


@pytest.mark.parametrize(
    "url", ["https://u:hush@proxy:1", "socks5://u:hush@proxy", "http://u:hush@proxy:x", "http://"]
)
def test_a_proxy_that_cannot_be_used_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(RequestError, match="HTTPS_PROXY is http://HOST:PORT") as refused:
        Proxy.parse(url)
    assert "hush" not in str(refused.value)


def test_a_password_is_not_in_what_is_logged() -> None:
    proxy = Proxy.parse("http://ann:hush@proxy:1")
    assert "hush" not in f"{proxy} {proxy!r}"
    assert "YW5u" not in f"{proxy} {proxy!r}"


@pytest.mark.parametrize(
    "no_proxy",
    [
        *("*", "example.com", ".example.com", "llm.example.com", "LLM.example.com"),
        *("other, llm.example.com:443", "x,example.com", "other llm.example.com"),
        *("*.example.com", "*.example.com:443", "example.com."),
    ],
)
def test_no_proxy_names_what_is_reached_directly(no_proxy: str) -> None:
    assert proxy_for(RELAY, "http://proxy:1", no_proxy) is None


@pytest.mark.parametrize(
    "no_proxy", ["", ",", ".", "ample.com", "llm.example.com:8443", "com.example", "10.0.0.0/8"]
)
def test_what_no_proxy_does_not_name_goes_through_it(no_proxy: str) -> None:
    assert proxy_for(RELAY, "http://proxy:1", no_proxy) == Proxy("proxy", 1)


def test_a_network_in_no_proxy_means_the_addresses_in_it() -> None:
    inside, outside = Origin("https", "10.1.2.3", 443), Origin("https", "11.1.2.3", 443)
    assert proxy_for(inside, "http://proxy:1", "10.0.0.0/8") is None
    assert proxy_for(outside, "http://proxy:1", "10.0.0.0/8") is not None
    for entry in ("fd00::/8", "fd00::1", "[fd00::1]", "[fd00::1]:443"):
        assert proxy_for(Origin("https", "fd00::1", 443), "http://proxy:1", entry) is None
    assert proxy_for(Origin("https", "fd00::1", 443), "http://proxy:1", "[fd00::1]:8443")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "a.localhost"])
def test_this_machine_is_not_looked_for_through_a_proxy(host: str) -> None:
    assert proxy_for(Origin("https", host, 8443), "http://proxy:1", "") is None


def test_plain_http_and_no_proxy_at_all_go_directly() -> None:
    assert proxy_for(Origin("http", "relay", 80), "http://proxy:1", "") is None
    assert proxy_for(RELAY, None, "") is None
    assert proxy_for(RELAY, "", "") is None


async def _ask(answer: list[bytes], proxy: Proxy = PROXY) -> bytes:
    sent = b""

    def write(data: bytes) -> None:
        nonlocal sent
        sent += data

    async def read() -> bytes:
        if not answer:
            raise TransportError("closed")
        return answer.pop(0)

    await ask_to_connect(proxy, RELAY, write, read)
    return sent


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 2, 7, 500])
async def test_an_answer_in_pieces_of_any_size_is_one_answer(size: int) -> None:
    whole = b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n"
    sent = await _ask([whole[i : i + size] for i in range(0, len(whole), size)])
    assert sent == b"CONNECT llm.example.com:443 HTTP/1.1\r\nHost: llm.example.com:443\r\n\r\n"


ODD_BUT_CONNECTED = [
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 200 \r\n\r\n",
    b"HTTP/1.1 201 Created\r\n\r\n",
    b"HTTP/1.0 200 OK\nVia: x\n\n",
    b"HTTP/1.1 200 OK\r\nVia: x\r\n\n",
    b"HTTP/1.1 200 OK\r\nX-Policy: a,\r\n  b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * (MAX_ANSWER_BYTES // 2) + b"\r\n\r\n",
]


@pytest.mark.anyio
@pytest.mark.parametrize("whole", ODD_BUT_CONNECTED, ids=range(len(ODD_BUT_CONNECTED)))
async def test_an_odd_answer_that_connects_is_taken_in_pieces_of_any_size(whole: bytes) -> None:
    for size in (1, 3, len(whole)):
        await _ask([whole[i : i + size] for i in range(0, len(whole), size)])


@pytest.mark.anyio
@pytest.mark.parametrize("code", ["407 Proxy Authentication Required", "407"])
@pytest.mark.parametrize("body", [b"<html>", b"6\r\n<html>\r\n0\r\n\r\n"])
async def test_the_page_of_a_proxy_that_wants_credentials_is_not_read(
    code: str, body: bytes
) -> None:
    head = f"HTTP/1.1 {code}\nProxy-Authenticate: NTLM\n\tx\n\n".encode()
    with pytest.raises(TransportError, match="asks for a user name"):
        await _ask([head + body])


@pytest.mark.anyio
async def test_credentials_go_to_the_proxy() -> None:
    sent = await _ask([b"HTTP/1.1 200 OK\r\n\r\n"], Proxy.parse("http://a:b@proxy"))
    assert b"\r\nProxy-Authorization: Basic YTpi\r\n" in sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", TransportError, "refuses a connection to llm.example"),
        (b"HTTP/1.1 407 X\r\n\r\n", TransportError, "asks for a user name and a password"),
        (b"HTTP/1.1 502 \x1b[2J\r\n\r\n", TransportError, r"\\x1b"),
        (b"HTTP/1.1 403 No\n\nhello", TransportError, "llm.example.com:443: '403 No';"),
        (b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", TransportError, "'302 Found'"),
        (b"HTTP/1.1 101 No\r\n\r\n", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 200 O\x00K\r\n\r\n", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 100 C\r\n\r\n" * 1000, RemoteProtocolError, "is no HTTP proxy"),
        (b"SSH-2.0-OpenSSH\r\n", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 abc\r\n\r\n", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/2 200\r\n\r\n", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 200 " + b"x" * MAX_ANSWER_BYTES, RemoteProtocolError, "is no HTTP proxy"),
        (b"HTTP/1.1 200 O", TransportError, "closed the connection after"),
        (b"", TransportError, "closed the connection without an answer"),
    ],
)
async def test_an_answer_that_is_no_connection_is_told_in_words(
    answer: bytes, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        await _ask([answer] if answer else [])


@pytest.mark.anyio
async def test_wrong_credentials_are_told_apart_from_missing_ones() -> None:
    with pytest.raises(TransportError, match="does not accept the user name"):
        await _ask([b"HTTP/1.1 407 X\r\n\r\n"], Proxy.parse("http://a:b@proxy"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 No\r\n\r\n", "refuses a connection to relay.test:8443"),
        (b"hello", "is no HTTP proxy"),
        (b"", "through the proxy 127.0.0.1:[0-9]+ within"),  # it hangs
    ],
)
async def test_a_real_proxy_that_does_not_connect_fails_the_dial(
    answer: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not answer:
        monkeypatch.setattr(dialling, "CONNECT_S", 0.2)
    key = NodeKey.generate()
    hello = Hello(key.public, "box", b"", agent="tests", instance="i")
    with connect_proxy(answer=answer) as proxy:
        way = Proxy("127.0.0.1", proxy.port)
        address = RelayAddress("https://relay.test:8443", b"r" * 32, b"p" * 32, proxy=way)
        with pytest.raises((TransportError, RemoteProtocolError), match=said):
            await dial(address, key, hello)
    assert proxy.asked == ["CONNECT relay.test:8443 HTTP/1.1"]
