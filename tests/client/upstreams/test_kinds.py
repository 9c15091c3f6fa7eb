"""The registry of kinds of upstream: the order in which they are detected, and odd ones in it."""

from __future__ import annotations

import asyncio

import pytest

from tests.client.upstreams.test_upstreams import LLAMA, NOT_FOUND, OLLAMA, serving
from tests.harness.raw_upstream import ok, raw_upstream, read_request
from wai_node.upstreams import KINDS, Probe, Upstream, identify
from wai_node.upstreams.upstream import Asker
from wai_protocol.errors import RequestError, WaiError

pytestmark = pytest.mark.anyio


class ImitatesOllama(Upstream):
    kind = "imitator"
    usual_ports = (5001, 8080)

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        return await asker.read("/imitator", dict[str, str]) is not None

    async def probe(self) -> Probe:
        raise WaiError("not asked here")


class Breaks(ImitatesOllama):
    kind = "breaks"

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        raise KeyError("a bug")


def test_ports_are_looked_at_once_each() -> None:
    assert KINDS.usual_ports == (8080, 11434, 1234, 8000)
    assert KINDS.preceded_by(ImitatesOllama).usual_ports == (5001, 8080, 11434, 1234, 8000)


def test_two_kinds_of_one_name_are_refused() -> None:
    odd = type("Odd", (ImitatesOllama,), {"kind": "ollama"})
    with pytest.raises(RequestError):
        KINDS.preceded_by(odd)


async def test_an_added_kind_gets_a_server_that_imitates_one_of_ours() -> None:
    kinds = KINDS.preceded_by(ImitatesOllama)
    async with raw_upstream(serving({**OLLAMA, "/imitator": {}})) as raw:
        found = await identify(raw.url, kinds=kinds)
        assert found is not None
        assert (found.kind, found.capabilities) == ("imitator", ())
        await found.aclose()
    async with raw_upstream(serving(OLLAMA)) as raw:
        found = await identify(raw.url, kinds=kinds)
        assert found is not None
        assert found.kind == "ollama"
        await found.aclose()


async def test_a_kind_with_a_bug_hides_no_other() -> None:
    async with raw_upstream(serving(LLAMA, b"Server: llama.cpp")) as raw:
        found = await identify(raw.url, kinds=KINDS.preceded_by(Breaks))
        assert found is not None
        assert found.kind == "llama-server"
        assert found.model("m").capabilities == ("per_token_timings", "continue_final_message")
        await found.aclose()


async def test_no_path_is_asked_twice_however_many_kinds_want_it() -> None:
    asked: list[str] = []

    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(r)
            asked.append(head.split(b" ")[1].decode())
            listed = asked[-1] == "/v1/models"
            w.write(ok(b'{"data": [{"id": "m"}]}') if listed else NOT_FOUND)

    async with raw_upstream(script) as raw:
        found = await identify(raw.url)
        assert found is not None
        assert found.kind == "openai"
        await found.aclose()
    assert asked == ["/health", "/api/tags", "/api/v1/models", "/v1/models"]


@pytest.mark.parametrize("page", ["[" * 100_000, "\xff\xfe", '{"a": '])
async def test_what_is_no_json_is_no_answer_to_a_kind(page: str) -> None:
    pages = {"/health": "ok", "/api/tags": page, "/v1/models": page}
    async with raw_upstream(serving(pages)) as raw:
        assert await identify(raw.url) is None
