"""Whose address a request counts for: nobody but a trusted proxy can name another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import RequestError
from wai_protocol.surface import Headers
from wai_relay.http.trusted_proxies import ProxyConfig, TrustedProxies

PROXY = "127.0.0.1"
PROXIES = TrustedProxies([PROXY, "10.0.0.0/8", "2001:db8:1::/48"])


def xff(*values: str) -> Headers:
    return [(b"x-forwarded-for", value.encode("latin-1")) for value in values]


def forwarded(value: str) -> Headers:
    return [(b"forwarded", value.encode("latin-1"))]


@pytest.mark.parametrize("headers", [xff("192.0.2.1"), forwarded("for=192.0.2.1")])
def test_nobody_else_is_believed(headers: Headers) -> None:
    assert PROXIES.caller("198.51.100.9", headers) == "198.51.100.9"
    assert PROXIES.caller("", headers) == ""
    assert TrustedProxies().caller(PROXY, headers) == PROXY


@pytest.mark.parametrize(
    ("headers", "caller"),
    [
        (xff("192.0.2.1"), "192.0.2.1"),
        (xff("203.0.113.7, 192.0.2.1"), "192.0.2.1"),  # the caller wrote the first
        (xff("203.0.113.7", "192.0.2.1"), "192.0.2.1"),
        (xff("192.0.2.1,10.1.2.3 , 10.3.2.1"), "192.0.2.1"),
        (xff("nonsense, 192.0.2.1"), "192.0.2.1"),
        (xff("192.0.2.1, nonsense"), PROXY),
        (xff("192.0.2.1, nonsense, 10.1.2.3"), PROXY),
        (xff("192.0.2.1,"), PROXY),
        (xff("10.1.2.3, 10.3.2.1"), "10.1.2.3"),
        (xff("192.0.2.1:4711"), "192.0.2.1"),
        (xff("2001:DB8::0:1"), "2001:db8::1"),
        (xff("[2001:db8::1]:4711"), "2001:db8::1"),
        (xff("::ffff:192.0.2.1"), "192.0.2.1"),
        (xff("fe80::1%eth0"), PROXY),
        (xff("192.0.2.1:99999999"), PROXY),
        (xff("[192.0.2.1]"), PROXY),
        (xff("192.0.2.01"), PROXY),
        (xff("unknown"), PROXY),
        (xff(""), PROXY),
        (xff("192.0.2.1" + ", 10.0.0.1" * 40), "10.0.0.1"),
        ([], PROXY),
        (forwarded("for=192.0.2.1"), "192.0.2.1"),
        (forwarded('For="[2001:db8::1]:4711";proto=https;by=10.0.0.1'), "2001:db8::1"),
        (forwarded("for=203.0.113.7, for=192.0.2.1;proto=http, for=10.0.0.2"), "192.0.2.1"),
        (forwarded('for="203.0.113.7, for=192.0.2.9", for=192.0.2.1'), "192.0.2.1"),
        (forwarded("for=192.0.2.1, proto=http"), PROXY),
        (forwarded("for=192.0.2.1, for=_hidden"), PROXY),
        (forwarded("for=192.0.2.1;for=192.0.2.2"), PROXY),
        (forwarded('for=192.0.2.1, for="192.0.2.2'), PROXY),
        (forwarded("for 192.0.2.1"), PROXY),
        (forwarded("for=192.0.2.1,"), PROXY),
        # A proxy that sets one field passes on the other as it came.
        (xff("192.0.2.1") + forwarded("for=192.0.2.1"), "192.0.2.1"),
        (xff("192.0.2.1") + forwarded("for=203.0.113.7"), PROXY),
        (xff("203.0.113.7") + forwarded("for=192.0.2.1"), PROXY),
        (xff("192.0.2.1") + forwarded("nonsense"), PROXY),
    ],
)
def test_the_last_address_that_no_trusted_proxy_has_is_the_callers(
    headers: Headers, caller: str
) -> None:
    assert PROXIES.caller(PROXY, headers) == caller


def test_a_proxy_that_is_known_to_set_one_field_is_believed_by_that_one() -> None:
    headers = xff("192.0.2.1") + forwarded("for=203.0.113.7")
    assert TrustedProxies([PROXY], "x-forwarded-for").caller(PROXY, headers) == "192.0.2.1"
    assert TrustedProxies([PROXY], "forwarded").caller(PROXY, headers) == "203.0.113.7"
    assert TrustedProxies([PROXY], "forwarded").caller(PROXY, xff("192.0.2.1")) == PROXY


@given(st.text(alphabet='for=192.0."[]:;,\\ \t', max_size=60))
def test_any_value_gives_some_address(value: str) -> None:
    for headers in (xff(value), forwarded(value)):
        assert PROXIES.caller(PROXY, headers)


@pytest.mark.parametrize("entry", ["", "localhost", "10.0.0.0/40", "10.0.0", "*"])
def test_what_is_no_network_is_refused_in_the_configuration(entry: str) -> None:
    with pytest.raises(RequestError, match=r"proxy\.trusted"):
        ProxyConfig(("127.0.0.1", entry))
