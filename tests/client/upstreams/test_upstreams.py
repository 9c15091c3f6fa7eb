"""Detection, the board's sums, and the watch over an upstream that comes, changes and goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from tests.harness.model_servers import model_server
from tests.harness.raw_upstream import Script, ok, raw_upstream, read_request
from wai_node.upstreams import Board, Probe, Watch, identify, ollama, upstream_at
from wai_node.upstreams.board import TIMEOUTS_BEFORE_DOWN
from wai_node.upstreams.openai import OpenAIUpstream
from wai_node.upstreams.tally import NOTHING, UNKNOWN, TokensSpent
from wai_node.upstreams.upstream import Upstream, metric
from wai_protocol.errors import WaiError
from wai_protocol.status import NodeStatus
from wai_protocol.surface import OLLAMA_ROUTES, OPENAI_ROUTES, ROUTES

pytestmark = pytest.mark.anyio

CHAT, OLLAMA_CHAT = OPENAI_ROUTES[0], OLLAMA_ROUTES[0]
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
LISTED = {"data": [{"id": "m"}]}
LLAMA = {
    "/health": {"status": "ok"},
    "/v1/models": LISTED,
    "/props": {"total_slots": 2, "default_generation_settings": {"n_ctx": 512}},
    "/metrics": "llamacpp:requests_processing 1\nllamacpp:requests_deferred 3\n",
}
OLLAMA = {
    "/api/version": {"version": "0.14.0"},
    "/api/tags": {"models": [{"name": "a:1b"}, {"name": "b:2b"}]},
    "/api/ps": {"models": [{"name": "b:2b", "context_length": 4096}]},
    "/v1/models": LISTED,
}
LM_STUDIO = {
    "/api/v1/models": {
        "models": [
            {"key": "m", "loaded_instances": [{"id": "m", "config": {"context_length": 8192}}]}
        ]
    },
    "/v1/models": LISTED,
}
VLLM = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 32768}]},
    "/metrics": 'vllm:num_requests_running{model_name="m"} 2.0\n',
}


class Stream:
    def spent(self) -> TokensSpent:
        return UNKNOWN


def serving(pages: Mapping[str, object], *headers: bytes) -> Script:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(r)
            page = pages.get(head.split(b" ")[1].decode())
            if page is None:
                w.write(NOT_FOUND)
            else:
                text = page if isinstance(page, str) else json.dumps(page)
                w.write(ok(text.encode(), *headers))

    return script


@asynccontextmanager
async def found(pages: Mapping[str, object], *headers: bytes) -> AsyncIterator[Upstream]:
    async with raw_upstream(serving(pages, *headers)) as raw:
        upstream = await identify(raw.url + "/v1")
        assert upstream is not None
        yield upstream
        await upstream.aclose()


async def test_llama_server_tells_slots_context_and_queue() -> None:
    async with found(LLAMA, b"Server: llama.cpp") as upstream:
        probe = await upstream.probe()
        (model,) = probe.models
        assert (upstream.kind, probe.counted, model.context_tokens) == ("llama-server", True, 512)
        assert (model.slots_total, model.slots_busy, model.queued) == (2, 1, 3)
        assert model.apis == ("openai", "anthropic", "llama.cpp")


async def test_a_router_lists_its_models_and_which_one_failed() -> None:
    listed = [
        {"id": "a", "status": {"value": "loaded", "args": ["x", "--parallel", "4"]}},
        {"id": "b", "status": {"value": "unloaded"}},
        {"id": "c", "status": {"value": "unloaded", "failed": True}},
    ]
    pages = {**LLAMA, "/v1/models": {"data": listed}}
    async with found(pages, b"Server: llama.cpp") as upstream:
        models = (await upstream.probe()).models
        assert [(m.id, m.ready, m.slots_total) for m in models] == [
            ("a", True, 4),
            ("b", True, None),
            ("c", False, None),
        ]


async def test_ollama_tells_the_context_of_what_is_loaded() -> None:
    async with found(OLLAMA) as upstream:
        models = (await upstream.probe()).models
        assert upstream.kind == "ollama"
        assert [(m.id, m.context_tokens) for m in models] == [("a:1b", None), ("b:2b", 4096)]


async def test_ollamas_models_are_asked_once_what_they_can_do() -> None:
    asked: list[str] = []
    tags = [{"name": "llama3:latest", "digest": "d1", "size": 7}, {"name": "embed:1b"}]
    shown = {
        "capabilities": ["completion", "tools", "something new"],
        "model_info": {"llama.context_length": 131072, "llama.embedding_length": 4},
    }

    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(r)
            path = head.split(b" ")[1].decode()
            if path == "/api/show":
                asked.append(json.loads(body)["model"])
                page: object = shown if len(asked) == 1 else "not json"
            elif path in OLLAMA:
                page = OLLAMA[path] if path != "/api/tags" else {"models": tags}
            else:
                w.write(NOT_FOUND)
                continue
            w.write(ok((page if isinstance(page, str) else json.dumps(page)).encode()))

    async with raw_upstream(script) as raw:
        upstream = await identify(raw.url)
        assert upstream is not None
        for _ in range(2):
            first, second = (await upstream.probe()).models
        assert asked == ["llama3:latest", "embed:1b"]
        assert (first.largest_context_tokens, first.context_tokens) == (131072, None)
        assert first.capabilities == ("completion", "tools")
        assert (first.aliases, first.loaded, first.size_bytes) == (("llama3",), False, 7)
        assert (second.aliases, second.capabilities) == ((), ())
        await upstream.aclose()


@pytest.mark.parametrize(
    ("told", "slots"), [("4", 4), ("", None), ("0", None), ("-1", None), ("4; rm", None)]
)
async def test_ollamas_parallelism_is_read_where_its_environment_can_be(
    told: str, slots: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"OLLAMA_NUM_PARALLEL": told}
    monkeypatch.setattr(ollama, "environment_of_listener", lambda port: environment)
    async with found(OLLAMA) as upstream:
        assert {m.slots_total for m in (await upstream.probe()).models} == {slots}
        environment["OLLAMA_NUM_PARALLEL"] = "9"  # not read again while it answers
        assert {m.slots_total for m in (await upstream.probe()).models} == {slots}
        upstream.slots = 2  # its owner's word
        assert {m.slots_total for m in (await upstream.probe()).models} == {2}


async def test_lm_studio_is_no_ollama_though_it_answers_200_to_any_path() -> None:
    with model_server("lm-studio") as server:
        upstream = await identify(server.url)
        assert upstream is not None
        assert upstream.kind == "lm-studio"
        (model,) = (await upstream.probe()).models
        assert (model.id, model.slots_total, model.loaded) == ("studio-model", 4, True)
        await upstream.aclose()


@pytest.mark.parametrize(
    ("kind", "has", "lacks"),
    [
        ("vllm", "/v1/messages", "/api/chat"),
        ("ollama", "/v1/messages", "/v1/rerank"),
        ("lm-studio", "/v1/messages", "/v1/rerank"),
        ("strict", "/v1/chat/completions", "/v1/messages"),
    ],
)
async def test_what_a_server_has_is_found_of_each_kind(kind: str, has: str, lacks: str) -> None:
    with model_server(kind) as server:
        upstream = await identify(server.url, server.key)
        assert upstream is not None
        routes = await upstream.find_routes(ROUTES)
        assert routes is not None
        assert has in routes
        assert lacks not in routes
        assert server.seen == [] or all(not seen.body for seen in server.seen)
        await upstream.aclose()


async def test_lm_studio_and_vllm_are_told_apart_from_a_plain_list() -> None:
    async with found(LM_STUDIO) as upstream:
        assert upstream.kind == "lm-studio"
        assert (await upstream.probe()).models[0].context_tokens == 8192
    async with found(VLLM) as upstream:
        assert upstream.kind == "vllm"
        model = (await upstream.probe()).models[0]
        assert (model.context_tokens, model.slots_busy) == (32768, 2)
    async with found({"/v1/models": LISTED}) as upstream:
        assert upstream.kind == "openai"
        assert [m.id for m in (await upstream.probe()).models] == ["m"]


@pytest.mark.parametrize("page", ["<html>", "[]", '{"data": 3}', '{"data": [{"id": 7}]}'])
async def test_a_web_page_on_a_usual_port_is_no_upstream(page: str) -> None:
    async with raw_upstream(serving({"/v1/models": page, "/health": "ok"})) as raw:
        assert await identify(raw.url) is None
        given = await upstream_at(raw.url)
        assert given.kind == "openai"
        with pytest.raises(WaiError):
            await given.probe()
        await given.aclose()


async def test_an_address_that_is_none_is_refused() -> None:
    for url in ("127.0.0.1:8080", "ftp://x", "http://", "http://u:p@x/", "http://x:99999"):
        with pytest.raises(WaiError):
            await upstream_at(url)


def test_metrics_that_are_no_numbers_count_as_missing() -> None:
    assert metric('a{x="1"} 2\na{x="2"} 3\nab 9\n', "a") == 5
    assert metric("a NaN\n", "a") is None
    assert metric("a -1\n", "a") is None
    assert metric("a x\n", "a") is None
    assert metric("", "a") is None


async def test_our_streams_count_between_polls_and_nothing_leaks() -> None:
    upstream, board = OpenAIUpstream("http://127.0.0.1:1"), Board()
    board.add(upstream)
    told = replace(upstream.model("m"), slots_total=2, slots_busy=1)
    board.probed(upstream, Probe((told,), counted=True))
    streams = [Stream() for _ in range(3)]
    for stream in streams:
        board.started(upstream, "m", stream)
    model = board.status().models[0]
    assert (model.slots_busy, model.queued) == (2, 2)
    board.probed(upstream, Probe((replace(told, slots_busy=2, queued=1),), counted=True))
    board.ended(upstream, "m", streams[0], NOTHING)
    model = board.status().models[0]
    assert (model.slots_busy, model.queued) == (2, 0)
    for _ in range(5):
        board.ended(upstream, "m", streams[0], NOTHING)
    assert board.status().models[0].slots_busy == 0
    assert board.active() == {}


async def test_a_slow_poll_is_not_yet_down_and_a_refusal_is() -> None:
    upstream, board = OpenAIUpstream("http://127.0.0.1:1"), Board()
    board.add(upstream)
    board.probed(upstream, Probe((upstream.model("m"),)))
    for _ in range(TIMEOUTS_BEFORE_DOWN - 1):
        assert not board.failed(upstream, "slow", timed_out=True)
    assert board.serves("m")
    assert board.failed(upstream, "refused", timed_out=False)
    [away] = board.status().models
    assert (away.id, away.ready) == ("m", False), "known and away is not unknown"
    board.probed(upstream, Probe(()))
    assert not board.serves("m"), "it says itself that it has it no more"
    assert board.failed(upstream, "refused", timed_out=False)
    assert board.status().detail["upstreams"][upstream.name]["error"] == "refused"


async def test_the_less_loaded_of_two_upstreams_is_chosen_and_a_loading_one_last() -> None:
    board = Board()
    one, two = OpenAIUpstream("http://127.0.0.1:1"), OpenAIUpstream("http://127.0.0.1:2")
    for upstream in (one, two):
        board.add(upstream)
        board.probed(upstream, Probe((upstream.model("m"),)))
    board.started(one, "m", Stream())
    assert board.choose("m", CHAT) is two
    board.probed(two, Probe((replace(two.model("m"), ready=False),)))
    assert board.choose("m", CHAT) is one
    assert board.choose("m", OLLAMA_CHAT) is None
    assert board.choose("x", CHAT) is None


async def test_the_watch_tells_a_change_once_and_closes_what_it_polled() -> None:
    statuses: list[NodeStatus] = []
    changed = asyncio.Event()

    def on_change(status: NodeStatus) -> None:
        statuses.append(status)
        changed.set()

    async with raw_upstream(serving({"/v1/models": LISTED})) as raw:
        upstream = await upstream_at(raw.url)
        watch = Watch(Board(), on_change, given=[upstream])
        running = asyncio.get_running_loop().create_task(watch.run())
        await changed.wait()
        assert [m.id for m in statuses[0].models] == ["m"]
        changed.clear()
        watch.started(upstream, "m", Stream())
        await changed.wait()
        assert statuses[-1].models[0].slots_busy == 1
        assert len(statuses) == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert upstream.client.open_connections == 0


async def test_the_same_model_on_two_upstreams_is_served_while_one_is_down() -> None:
    board = Board()
    one, two = OpenAIUpstream("http://127.0.0.1:1"), OpenAIUpstream("http://127.0.0.1:2")
    for upstream in (one, two):
        board.add(upstream)
        board.probed(upstream, Probe((upstream.model("m"),)))
    board.failed(one, "refused", timed_out=False)
    assert board.choose("m", CHAT) is two
    board.started(two, "m", Stream())
    assert board.choose("m", CHAT) is two, "busy is better than away"
    assert sorted(m.ready for m in board.status().models) == [False, True]


async def test_an_upstream_that_went_down_is_found_again_and_forgotten_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    for name in ("DISCOVER_S", "HURRIED_POLL_S", "POLL_S"):
        monkeypatch.setattr(f"wai_node.upstreams.watch.{name}", 0.02)
    statuses: list[NodeStatus] = []
    changed = asyncio.Event()

    def on_change(status: NodeStatus) -> None:
        statuses.append(status)
        changed.set()

    async def until(wanted: list[tuple[str, bool]]) -> None:
        async with asyncio.timeout(20):
            while not statuses or [(m.id, m.ready) for m in statuses[-1].models] != wanted:
                changed.clear()
                await changed.wait()

    known: list[frozenset[int]] = []
    found: list[Upstream] = []

    async def discover(ports: frozenset[int]) -> list[Upstream]:
        known.append(ports)
        return [found.pop()] if found else []

    async with raw_upstream(serving({"/v1/models": LISTED})) as raw:
        first = await upstream_at(raw.url)
        found.append(first)
        watch = Watch(Board(), on_change, discover=discover, clock=lambda: now[0])
        running = asyncio.get_running_loop().create_task(watch.run())
        await until([("m", True)])
        assert first.origin.port in known[-1] or first.origin.port in known[0] or len(known) < 2
    await until([("m", False)])
    assert first.origin.port not in known[-1], "it is not looked for"
    now[0] = 1000.0
    await until([])
    assert watch.board.upstreams == []
    running.cancel()


async def test_a_named_server_that_starts_after_the_node_is_known_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HURRIED_POLL_S", "POLL_S"):
        monkeypatch.setattr(f"wai_node.upstreams.watch.{name}", 0.02)
    pages: dict[str, object] = {}
    board = Board()
    async with raw_upstream(serving(pages)) as raw:
        named = await upstream_at(raw.url, "its-key")
        watch = Watch(board, lambda status: None, given=[named])
        running = asyncio.get_running_loop().create_task(watch.run())
        pages.update(OLLAMA)
        async with asyncio.timeout(20):
            while [u.kind for u in board.upstreams] != ["ollama"]:  # noqa: ASYNC110 - tells no event
                await asyncio.sleep(0.02)
        assert board.upstreams[0].key == "its-key"
        running.cancel()


async def test_how_many_at_once_counts_where_the_owner_says_it_and_the_server_does_not() -> None:
    upstream = OpenAIUpstream("http://127.0.0.1:9")
    upstream.slots = 2
    board = Board()
    board.add(upstream)
    told = upstream.model("m")
    board.probed(upstream, Probe((told,)))
    assert board.status().models[0].slots_total == 2
    board.probed(upstream, Probe((replace(told, slots_total=8),)))
    assert board.status().models[0].slots_total == 8
    await upstream.aclose()


async def test_why_a_server_is_not_used_is_in_the_log_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = OpenAIUpstream("http://127.0.0.1:9")
    board = Board()
    watch = Watch(board, lambda status: None, given=[upstream])
    with caplog.at_level("INFO", "wai.node"):
        for _ in range(3):
            await watch._poll(upstream)
    (line,) = caplog.messages
    assert line.startswith("openai@127.0.0.1:9 is not used: ")
    await upstream.aclose()
