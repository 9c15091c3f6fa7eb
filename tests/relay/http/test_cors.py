"""CORS: preflights, the fields on every response, and which origins may call."""

from __future__ import annotations

import h2.events
import pytest

from wai_protocol.errors import Fault, RequestError
from wai_relay.http.cors import MAX_ASKED_BYTES, CorsConfig, CrossOrigin
from wai_relay.http.edge import Edge, Handler
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection

from .fakes import FakeTransport, echo, turns
from .test_h2 import Caller

pytestmark = pytest.mark.anyio

PAGE = "https://app.example"


async def ask(
    cross_origin: CrossOrigin, method: str, fields: dict[str, str]
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and body of the response to one request over HTTP/1.1."""
    transport = FakeTransport()
    connection = H1Connection(Edge(cross_origin.handle))
    connection.connection_made(transport.as_transport())
    lines = [f"{method} /v1/models HTTP/1.1", "Host: a"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    connection.data_received("\r\n".join([*lines, "", ""]).encode())
    await turns()
    head, _, body = bytes(transport.written).decode().partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    connection.connection_lost(None)
    return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body


def allowing(*origins: str, handler: Handler = echo) -> CrossOrigin:
    return CrossOrigin(handler, CorsConfig(origins))


def preflight(origin: str = PAGE, **more: str) -> dict[str, str]:
    named = {f"Access-Control-Request-{name}": value for name, value in more.items()}
    return {"Origin": origin, "Access-Control-Request-Method": "POST", **named}


async def never(exchange: Exchange) -> None:
    raise AssertionError("a preflight reached the handler")


async def test_a_preflight_is_answered_without_the_handler() -> None:
    asked = "authorization,content-type,x-stainless-lang"
    status, headers, body = await ask(
        allowing("*", handler=never), "OPTIONS", preflight(Headers=asked)
    )
    assert (status, body) == (204, "")
    assert headers["access-control-allow-origin"] == "*"
    assert headers["access-control-allow-headers"] == asked
    assert "POST" in headers["access-control-allow-methods"]
    assert int(headers["access-control-max-age"]) > 0
    assert "access-control-allow-credentials" not in headers
    assert "access-control-allow-private-network" not in headers


async def test_a_page_may_ask_into_a_private_network_if_it_says_so() -> None:
    fields = preflight() | {"Access-Control-Request-Private-Network": "true"}
    _, headers, _ = await ask(allowing("*"), "OPTIONS", fields)
    assert headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("asked", ["a" * (MAX_ASKED_BYTES + 1), "a b", "authorization,,x", '"a"'])
async def test_odd_field_names_are_not_repeated_to_the_browser(asked: str) -> None:
    status, headers, _ = await ask(allowing("*"), "OPTIONS", preflight(Headers=asked))
    assert status == 204
    assert headers["access-control-allow-headers"].startswith("authorization, ")


@pytest.mark.parametrize("fault", [Fault.KEY_INVALID, Fault.RATE_LIMITED, Fault.INTERNAL])
async def test_a_page_may_read_why_it_is_refused(fault: Fault) -> None:
    async def refuse(exchange: Exchange) -> None:
        raise RequestError("no", fault, retry_after_s=3)

    status, headers, _ = await ask(allowing("*", handler=refuse), "POST", {"Origin": PAGE})
    assert status == fault.row.http_status
    assert headers["access-control-allow-origin"] == "*"
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-should-retry", "x-wai-node"} <= set(exposed)


async def test_over_http_2_too() -> None:
    caller = Caller(allowing("*").handle)
    head = [(":method", "GET"), (":scheme", "https"), (":path", "/v1/models")]
    caller.h2.send_headers(1, [*head, (":authority", "a"), ("origin", PAGE)], end_stream=True)
    await caller.talk()
    [response] = caller.get(h2.events.ResponseReceived)
    assert isinstance(response, h2.events.ResponseReceived)
    assert "access-control-allow-origin" in str(response.headers)


async def test_programs_get_no_cors_fields_and_their_options_are_not_answered_here() -> None:
    status, headers, body = await ask(allowing("*"), "OPTIONS", {})
    assert (status, body) == (200, "/v1/models:")
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("listed", "origin", "may"),
    [
        ("https://app.example", "https://app.example", True),
        ("https://app.example", "http://app.example", False),
        ("https://app.example", "https://app.example.evil.test", False),
        ("https://app.example", "https://app-example", False),
        ("https://*.app.example", "https://a.b.app.example", True),
        ("https://*.app.example", "https://app.example", False),
        ("https://*.app.example", "https://evil.test/.app.example", False),
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "http://localhost", True),
        ("http://localhost:*", "http://localhost:5173.evil.test", False),
        ("http://[::1]:*", "http://[::1]:8080", True),
        ("chrome-extension://abcdef", "chrome-extension://abcdef", True),
        ("null", "null", True),
        ("https://app.example", "null", False),
    ],
)
async def test_a_list_allows_what_it_names(listed: str, origin: str, may: bool) -> None:
    cross_origin = allowing("https://other.example", listed)
    _, headers, _ = await ask(cross_origin, "GET", {"Origin": origin})
    assert headers.get("access-control-allow-origin") == (origin if may else None)
    assert headers["vary"] == "origin"
    status, headers, _ = await ask(cross_origin, "OPTIONS", preflight(origin))
    assert (status, "access-control-allow-origin" in headers) == (
        (204, True) if may else (403, False)
    )


async def test_an_empty_list_turns_it_off_and_a_reload_on_again() -> None:
    cross_origin = allowing()
    status, headers, _ = await ask(cross_origin, "OPTIONS", preflight())
    assert status == 200  # the handler's answer
    assert "access-control-allow-origin" not in headers
    cross_origin.configure(CorsConfig((PAGE,)))
    status, headers, _ = await ask(cross_origin, "OPTIONS", preflight())
    assert (status, headers["access-control-allow-origin"]) == (204, PAGE)


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "app.example", "https://*", "", "http://a b"]
)
def test_what_no_browser_sends_is_refused_in_the_configuration(origin: str) -> None:
    with pytest.raises(RequestError, match=r"cors\.origins"):
        CorsConfig((origin,))
