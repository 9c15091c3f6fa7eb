"""The allow-list of routes: what may be added to it, and that nothing widens it unseen."""

from __future__ import annotations

import pytest

from wai_protocol.errors import RequestError
from wai_protocol.surface import ROUTES, Route, Task

NEW = Route("POST", "/v2/generate", "tiny", Task.GENERATE)


def test_a_longer_list_has_the_new_route_and_the_old_list_stays_as_it_was() -> None:
    longer = ROUTES.extended([NEW])
    assert longer.find("POST", "/v2/generate") is NEW
    assert longer.find("GET", "/v2/generate") is None
    assert longer.find("POST", "/v1/messages") is ROUTES.find("POST", "/v1/messages")
    assert ROUTES.find("POST", "/v2/generate") is None
    assert longer.methods("/v2/generate") == ["POST"]


@pytest.mark.parametrize(
    ("method", "path", "api"),
    [
        ("POST", "/v1/chat/completions", "tiny"),  # would take a route from its dialect
        ("post", "/v2/generate", "tiny"),
        ("PO ST", "/v2/generate", "tiny"),
        ("", "/v2/generate", "tiny"),
        ("POST", "v2/generate", "tiny"),
        ("POST", "/", "tiny"),
        ("POST", "/v2//generate", "tiny"),
        ("POST", "/v2/../slots", "tiny"),
        ("POST", "/v2/./generate", "tiny"),
        ("POST", "/v2/%2e%2e/slots", "tiny"),
        ("POST", "/v2/generate?a=b", "tiny"),
        ("POST", "/v2/gener ate", "tiny"),
        ("POST", "/v2/generate\r\nx: y", "tiny"),
        ("POST", "/v2/" + "x" * 300, "tiny"),
        ("POST", "/v2/generate", ""),
        ("POST", "/v2/generate", "x" * 33),
    ],
)
def test_a_route_that_is_not_one_plain_endpoint_is_refused(
    method: str, path: str, api: str
) -> None:
    with pytest.raises(RequestError):
        ROUTES.extended([Route(method, path, api, Task.GENERATE)])
