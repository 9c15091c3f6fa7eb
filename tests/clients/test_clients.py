"""The quick half of `make clients`: SDKs that are here anyway, against each kind of server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.caller import chat, request

from .clients import CLIENTS, Client
from .documented import LANGUAGES, Snippet, run_snippet, snippets
from .run import Fleet, fleet, fleet_of_one, run

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("clients"),
]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("clients"), tiny_model) as made:
        yield made


@pytest.mark.parametrize("client", [c for c in CLIENTS if c.quick], ids=lambda c: c.name)
def test_a_client_works_with_every_server(there: Fleet, client: Client) -> None:
    got = run(client, there)
    assert {server: result.error for server, result in got.items() if result.error} == {}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of_one(tmp_path_factory.mktemp("one")) as made:
        yield made


@pytest.mark.parametrize("snippet", [s for s in snippets() if s.is_here], ids=lambda s: s.place)
def test_a_block_of_the_page_does_not_work_as_it_stands(one: Fleet, snippet: Snippet) -> None:
    assert run_snippet(snippet, one) == ""


def test_no_block_of_the_page_is_run() -> None:
    found = snippets()
    assert {snippet.language for snippet in found} == set(LANGUAGES)
    assert sum(snippet.is_here for snippet in found) >= 3


def test_a_strict_server_is_sent_no_field_of_ours_twice(there: Fleet) -> None:
    """It is found out by the first streamed request, and then remembered."""
    headers = {"Authorization": f"Bearer {there.key}"}
    for _ in range(2):
        body = chat(there.models["strict"], stream=True)
        with request(there.cluster, "/v1/chat/completions", body, headers) as answer:
            assert answer.status == 200
            answer.read()
    seen = there.servers["strict"].seen
    seen.clear()
    body = chat(there.models["strict"], stream=True)
    with request(there.cluster, "/v1/chat/completions", body, headers) as answer:
        assert b"[DONE]" in answer.read()
    assert [set(one.body) for one in seen] == [{"model", "messages", "max_tokens", "stream"}]
