"""The allow-list of routes: what may be added to it, and that nothing widens it unseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


PLAIN = st.text("ABCxyz019-._~:@", min_size=1, max_size=20).filter(lambda p: p not in (".", ".."))


@given(PLAIN)
def test_an_identifier_in_a_path_may_be_any_plain_part(part: str) -> None:
    route = ROUTES.find("GET", f"/v1/responses/{part}")
    assert route is not None
    assert route.path == "/v1/responses/{id}"
    assert ROUTES.methods(f"/v1/responses/{part}") == ["DELETE", "GET"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/",
        "/v1/responses/.",
        "/v1/responses/..",
        "/v1/responses/../models",
        "/v1/responses/%2e%2e",
        "/v1/responses/a%2Fb",
        "/v1/responses/a/b",
        "/v1/responses/a?b",
        "/v1/responses/a b",
        "/v1/responses/\r\nx",
        "/v1/responses/" + "x" * 300,
        "/v1/responses/{id}/other",
        "//v1/responses/a",
    ],
)
def test_what_is_more_than_one_plain_part_is_refused(path: str) -> None:
    assert ROUTES.find("GET", path) is None


def test_the_rest_of_a_path_may_be_left_open() -> None:
    table = ROUTES.extended([Route("POST", "/custom/*", "extra", Task.READ)])
    found = table.find("POST", "/custom/a/b")
    assert found is not None
    assert found.path == "/custom/*"
    for path in (
        "/custom",
        "/custom/",
        "/custom//a",
        "/custom/../v1/x",
        "/custom/a/..",
        "/customs/a",
    ):
        assert table.find("POST", path) is None, path
    for path in ("/*", "/a/*/b", "/{id}", "/a*", "/{x}/a"):
        with pytest.raises(RequestError):
            ROUTES.extended([Route("POST", path, "extra", Task.READ)])
