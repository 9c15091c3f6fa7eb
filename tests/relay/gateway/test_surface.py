"""Which route a request goes by, and to which node, where servers differ in what they have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.exchanges import CALLER_KEY
from tests.harness.fleets import JSON, SSE, FakeNode
from tests.relay.gateway.test_gateway import Rig, answers, rig
from wai_protocol.status import COMPLETION, EMBEDDING, ModelStatus
from wai_relay.gateway.dispatch import ScheduledDispatcher

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
REPLY = b'{"choices":[{"message":{"content":"Hi."},"finish_reason":"stop"}]}'
RESPONSE = (
    b'{"id":"resp_1","object":"response","output":[],"usage":{"input_tokens":3,"output_tokens":1}}'
)


def model(
    *routes: str, name: str = "m", apis: tuple[str, ...] = ("openai",), **told: Any
) -> ModelStatus:
    return ModelStatus(name, "u", apis=apis, routes=frozenset(routes), **told)


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def scheduled(*nodes: FakeNode) -> Rig:
    """A gateway with the relay's own dispatcher, which knows models by all their names."""
    made = rig(*nodes)
    made.gateway._forwarder._dispatcher = ScheduledDispatcher(made.fleet)
    return made


MESSAGES = body(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])


async def test_what_the_server_has_is_passed_on_and_what_it_lacks_is_translated() -> None:
    native = FakeNode(
        *("a", model(CHAT, "/v1/messages", apis=("openai", "anthropic"))),
        script=answers(200, JSON, b'{"type":"message"}'),
    )
    exchange = await rig(native).ask(MESSAGES, path="/v1/messages")
    assert (native.streams[0].target, exchange.header(b"x-wai-translated")) == (
        "/v1/messages",
        None,
    )
    plain = FakeNode(
        "a", model(CHAT, apis=("openai", "anthropic")), script=answers(200, JSON, REPLY)
    )
    exchange = await rig(plain).ask(MESSAGES, path="/v1/messages")
    assert (plain.streams[0].target, exchange.status) == (CHAT, 200)
    assert exchange.header(b"x-wai-translated") == CHAT.encode()


async def test_a_request_goes_to_the_node_that_has_its_route() -> None:
    chat = FakeNode("a", model(CHAT), script=answers(200, JSON, REPLY))
    ranks = FakeNode("b", model("/v1/rerank"), script=answers(200, JSON, b'{"results":[]}'))
    for _ in range(3):
        exchange = await rig(chat, ranks).ask(body(model="m", query="q"), path="/v1/rerank")
        assert exchange.header(b"x-wai-node") == b"b"
    assert chat.streams == []


@pytest.mark.parametrize("asked", ["/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranking"])
@pytest.mark.parametrize("has", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_rerank_works_under_each_of_its_names(asked: str, has: str) -> None:
    node = FakeNode("a", model(has), script=answers(200, JSON, b'{"results":[]}'))
    sent = body(model="m", query="q", documents=["d"])
    exchange = await rig(node).ask(sent, path=asked)
    assert (exchange.status, node.streams[0].target) == (200, has)
    assert node.streams[0].body == sent


@pytest.mark.parametrize(
    "path",
    ["/chat/completions", "/openai/deployments/m/chat/completions", "/api/v1/chat/completions"],
)
async def test_other_beginnings_of_a_path_reach_the_same_route(path: str) -> None:
    node = FakeNode("a", model(CHAT), script=answers(200, JSON, REPLY))
    exchange = await rig(node).ask(body(model="m", messages=[]), path=path, query="api-version=1")
    assert (exchange.status, node.streams[0].target) == (200, CHAT + "?api-version=1")


async def test_azures_key_header_never_reaches_the_server() -> None:
    node = FakeNode("a", model(CHAT), script=answers(200, JSON, REPLY))
    headers = [(b"authorization", b"Bearer " + CALLER_KEY), (b"api-key", CALLER_KEY)]
    await rig(node).ask(body(model="m", messages=[]), headers=headers)
    assert b"api-key" not in dict(node.streams[0].headers)


async def test_a_model_need_not_be_named_where_there_is_no_choice() -> None:
    infill = "/infill"
    node = FakeNode(
        *("a", model(infill, apis=("llama.cpp",))),
        script=answers(
            *(200, SSE, b'data: {"content":"x","stop":false}\n\n'),
            b'data: {"content":"","stop":true,"tokens_evaluated":7,"tokens_predicted":3}\n\n',
        ),
    )
    r = rig(node)
    sent = body(input_prefix="def f(", input_suffix=")", stream=True)
    exchange = await r.ask(sent, path=infill)
    assert exchange.body.endswith(b'"tokens_predicted":3}\n\n')
    assert (node.streams[0].body, node.streams[0].model) == (sent, "m")
    record = r.records[0]
    assert (record.model, record.status, record.fault) == ("m", 200, "")
    other = FakeNode("b", model(infill, name="other", apis=("llama.cpp",)))
    exchange = await rig(node, other).ask(sent, path=infill)
    assert exchange.status == 400
    assert b"names no model" in exchange.body
    exchange = await rig(node, other).ask(sent, path=infill, query="model=m")
    assert exchange.status == 200


async def test_a_page_about_a_model_is_asked_of_its_node() -> None:
    node = FakeNode("a", model("/props", apis=("llama.cpp",)), script=answers(200, JSON, b"{}"))
    exchange = await rig(node).ask(b"", method="GET", path="/props")
    assert (exchange.status, node.streams[0].method, node.streams[0].body) == (200, "GET", b"")


async def test_an_answer_is_continued_where_it_is_kept() -> None:
    kept = model("/v1/responses", "/v1/responses/{id}")
    nodes = [FakeNode(name, kept, script=answers(200, JSON, RESPONSE)) for name in "abc"]
    r = rig(*nodes)
    first = await r.ask(body(model="m", input="hi"), path="/v1/responses")
    home = first.header(b"x-wai-node")
    for _ in range(4):
        sent = body(model="m", input="and?", previous_response_id="resp_1")
        again = await r.ask(sent, path="/v1/responses")
        assert again.header(b"x-wai-node") == home
    for method in ("GET", "DELETE"):
        exchange = await r.ask(
            b"", method=method, path="/v1/responses/resp_1", query="stream=false"
        )
        assert exchange.header(b"x-wai-node") == home
    assert sum(len(node.streams) for node in nodes) == 7
    stream = next(node for node in nodes if node.name.encode() == home).streams[-1]
    assert (stream.method, stream.target) == ("DELETE", "/v1/responses/resp_1?stream=false")


@pytest.mark.parametrize("path", ["/v1/responses/resp_2", "/v1/responses/resp_2/cancel"])
async def test_an_answer_that_nobody_knows_is_not_found(path: str) -> None:
    node = FakeNode("a", model("/v1/responses", "/v1/responses/{id}"))
    method = "POST" if path.endswith("cancel") else "GET"
    exchange = await rig(node).ask(b"", method=method, path=path)
    assert exchange.status == 404
    assert node.streams == []


@pytest.mark.parametrize(
    "path", ["/v1/responses/..", "/v1/responses/a%2Fb", "/v1/responses/a/b", "/v1/responses/"]
)
async def test_an_id_is_one_plain_part_of_a_path(path: str) -> None:
    exchange = await rig(FakeNode("a", model("/v1/responses/{id}"))).ask(
        b"", method="GET", path=path
    )
    assert exchange.status == 404
    assert b"There is no" in exchange.body


async def test_a_name_of_ollamas_form_reaches_the_server_as_it_was_written() -> None:
    told = model("/api/chat", name="llama3:latest", apis=("ollama",), aliases=("llama3",))
    node = FakeNode("a", told, script=answers(200, JSON, b'{"done":true}'))
    r = scheduled(node)
    sent = body(model="llama3", stream=False, messages=[{"role": "user", "content": "hi"}])
    await r.ask(sent, path="/api/chat")
    assert node.streams[0].body == sent
    await r.ask(sent.replace(b"llama3", b"LLAMA3"), path="/api/chat")
    assert json.loads(node.streams[1].body)["model"] == "llama3:latest"


async def test_lists_say_what_a_model_is_for_and_how_long_its_context_is() -> None:
    chat = model(
        CHAT, context_tokens=8192, capabilities=(COMPLETION,), aliases=("fast",), loaded=True
    )
    embeds = model(
        "/v1/embeddings", name="e", capabilities=(EMBEDDING,), loaded=False, size_bytes=9
    )
    r = rig(FakeNode("a", chat, embeds))
    for path in ("/v1/models", "/v1/models/", "/models", "/api/v1/models"):
        listed = json.loads((await r.ask(b"", method="GET", path=path)).body)
        told = {entry["id"]: entry for entry in listed["data"]}
        assert told["m"]["max_model_len"] == 8192
        assert (told["m"]["wai"]["kind"], told["e"]["wai"]["kind"]) == ("chat", "embedding")
    one = json.loads((await r.ask(b"", method="GET", path="/v1/models/fast")).body)
    assert one["id"] == "m"
    head = await r.ask(b"", method="HEAD", path="/v1/models")
    assert (head.status, head.body) == (200, b"")
    studio = json.loads((await r.ask(b"", method="GET", path="/api/v1/models")).body)["models"]
    assert [(m["key"], m["type"], len(m["loaded_instances"])) for m in studio] == [
        ("e", "embedding", 0),
        ("m", "llm", 1),
    ]
    running = json.loads((await r.ask(b"", method="GET", path="/api/ps")).body)["models"]
    assert [entry["name"] for entry in running] == ["m"], "what is on disk only does not run"
    tags = json.loads((await r.ask(b"", method="GET", path="/api/tags")).body)["models"]
    assert {len(entry["digest"]) for entry in tags} == {64}
    assert {entry["size"] for entry in tags} == {0, 9}


async def test_tokens_are_counted_by_estimate_where_the_server_can_not() -> None:
    r = rig(FakeNode("a", model(CHAT)))
    sent = body(model="m", input="word " * 400)
    counted = json.loads((await r.ask(sent, path="/v1/responses/input_tokens")).body)
    assert 300 < counted["input_tokens"] < 900
    assert counted["object"] == "response.input_tokens"


async def test_a_route_that_a_nodes_owner_added_is_passed_on_as_it_is() -> None:
    told = model(CHAT, "/custom/*", apis=("openai", "extra"))
    page = b"<html>anything</html>"
    node = FakeNode("a", told, script=answers(200, [(b"content-type", b"text/html")], page))
    plain = FakeNode("b", model(CHAT))
    r = rig(plain, node)
    exchange = await r.ask(body(any="thing"), path="/custom/a/b", query="model=m")
    assert (exchange.status, exchange.body) == (200, page)
    assert (node.streams[0].target, node.streams[0].body) == (
        "/custom/a/b?model=m",
        body(any="thing"),
    )
    for path in ("/custom", "/custom/../admin", "/custom/%2e%2e", "/other"):
        exchange = await r.ask(body(model="m"), path=path)
        assert (exchange.status, b"There is no" in exchange.body) == (404, True)
    exchange = await r.ask(body(model="m"), method="PUT", path="/v1/chat/completions")
    assert exchange.status == 405
    assert plain.streams == []
