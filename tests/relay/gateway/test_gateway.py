"""The gateway against scripted nodes: what callers get, whatever goes wrong behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from tests.harness.exchanges import CALLER_KEY, FakeExchange, make_request
from tests.harness.fleets import JSON, SSE, FakeFleet, FakeNode, FakeStream
from tests.harness.plain_dispatcher import LeastBusyDispatcher
from wai_api.limits import KeyLimits
from wai_protocol.errors import AuthError, Fault, LocalProtocolError, TransportError
from wai_protocol.status import PER_TOKEN_TIMINGS, ModelStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.contracts.upstream import Spent
from wai_relay.gateway.answer import CREDIT_EVERY_BYTES
from wai_relay.gateway.dispatch import Lease, RequestInfo
from wai_relay.gateway.gateway import Gateway
from wai_relay.gateway.limits import GatewayLimits
from wai_relay.gateway.opening import DOCUMENT_BYTES
from wai_relay.observe.explain import explain
from wai_relay.policy.scheduler import MAX_WAIT_S

pytestmark = pytest.mark.anyio

MODEL = ModelStatus(id="m", upstream="llama", apis=("openai", "anthropic", "ollama"))
CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM = b'{"stream":true,"model":"m","messages":[{"role":"user","content":"hi"}]}'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
MESSAGE_TOKEN = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}\n\n'
)
LONG_REPLY = b'{"choices":[{}],"padding":"' + b"x" * DOCUMENT_BYTES + b'"}'
REPLY = b'{"choices":[{}],"usage":{"prompt_tokens":9,"completion_tokens":2}}'


class OneKey:
    def __init__(self, limits: KeyLimits) -> None:
        self.key = ApiKey("key_1", "test", b"", "wai_sk_test", limits, 1, 0.0)

    def authenticate(self, headers: Headers) -> ApiKey:
        sent = dict(headers)
        if sent.get(b"authorization") == b"Bearer " + CALLER_KEY:
            return self.key
        if sent.get(b"x-api-key") is not None:
            raise AuthError("this API key is not known", Fault.KEY_INVALID)
        raise AuthError("no API key", Fault.KEY_MISSING)


@dataclass
class Clock:
    """Time that stands still until a test moves it; timers fire when it passes them."""

    now: float = 1000.0
    timers: list[FakeTimer] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self.now + delay, call)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            if not timer.cancelled:
                timer.call()


@dataclass(eq=False)
class FakeTimer:
    at: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Rig:
    """A gateway over some nodes, and what it recorded."""

    gateway: Gateway
    fleet: FakeFleet
    dispatcher: LeastBusyDispatcher
    clock: Clock
    records: list[RequestRecord]

    async def ask(self, body: bytes = CHAT, **request: Any) -> FakeExchange:
        exchange = FakeExchange(make_request(**request), [body])
        await self.gateway.handle(exchange)
        assert exchange.over
        return exchange

    @asynccontextmanager
    async def asking(self, node: FakeNode) -> AsyncIterator[FakeExchange]:
        """A request for a stream that `node` has got, and that is over when the block is."""
        exchange = FakeExchange(make_request(), [STREAM])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.gateway.handle, exchange)
            await until(lambda: bool(node.streams))
            yield exchange


def rig(*nodes: FakeNode, limits: GatewayLimits | None = None, **key_limits: Any) -> Rig:
    fleet = FakeFleet(*nodes)
    dispatcher = LeastBusyDispatcher(fleet)
    clock = Clock()
    records: list[RequestRecord] = []

    class Keep:
        def finish(self, record: RequestRecord) -> None:
            records.append(record)

    gateway = Gateway(
        OneKey(KeyLimits(**key_limits)),
        fleet,
        dispatcher,
        Keep(),
        limits,
        clock=clock,
        wall_clock=lambda: 1.0,
        call_later=clock.call_later,
    )
    return Rig(gateway, fleet, dispatcher, clock, records)


def answers(status: int, headers: Headers, *chunks: bytes) -> Callable[[FakeStream], None]:
    return lambda stream: stream.answer(status, headers, *chunks)


def breaks(fault: Fault = Fault.SESSION_LOST) -> Callable[[FakeStream], None]:
    return lambda stream: stream.sink.on_reset(fault, "the node is gone")


def error_of(exchange: FakeExchange) -> dict[str, Any]:
    found = json.loads(exchange.body)["error"]
    assert isinstance(found, dict)
    return found


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_answer_passes_and_is_explained_and_recorded() -> None:
    r = rig(FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY)))
    exchange = await r.ask()
    assert (exchange.status, exchange.body) == (200, REPLY)
    assert exchange.header(b"x-wai-node") == b"gpu1"
    assert exchange.header(b"x-wai-attempts") == b"1"
    assert exchange.header(b"x-wai-reason") == b"least-busy"
    assert exchange.header(b"x-wai-queue-ms") == b"0"
    (record,) = r.records
    assert (record.key_id, record.model, record.node, record.status) == ("key_1", "m", "gpu1", 200)
    assert (record.tokens.prompt, record.tokens.completion, record.tokens.exact) == (9, 2, True)
    assert record.bytes_in == len(CHAT)
    assert record.bytes_out == len(REPLY)


async def test_injected_usage_reaches_the_record_and_not_the_caller() -> None:
    node = FakeNode("gpu1", MODEL, script=answers(200, SSE, TOKEN, TOKEN, USAGE, DONE))
    r = rig(node)
    exchange = await r.ask(STREAM)
    assert exchange.body == TOKEN + TOKEN + DONE
    assert json.loads(node.streams[0].body)["stream_options"] == {"include_usage": True}
    assert r.records[0].tokens.exact
    asked = STREAM[:-1] + b',"stream_options":{"include_usage":true}}'
    assert (await r.ask(asked)).body == TOKEN + TOKEN + USAGE + DONE
    assert node.streams[1].body == asked


@pytest.mark.parametrize(
    ("upstream", "caller"),
    [
        ([b"%d" % len(REPLY)], [b"%d" % len(REPLY)]),
        ([], []),
        ([b"5", b"5"], []),
        ([b"+5"], []),
        ([b"5, 5"], []),
        ([b"9" * 16], []),
    ],
)
async def test_whole_answer_keeps_a_length_that_is_one_plain_number(
    upstream: list[bytes], caller: list[bytes]
) -> None:
    lengths = [(b"content-length", value) for value in upstream]
    node = FakeNode("gpu1", MODEL, script=answers(200, JSON + lengths, REPLY))
    exchange = await rig(node).ask()
    assert [v for n, v in exchange.headers if n == b"content-length"] == caller
    assert exchange.body == REPLY


async def test_stream_has_no_length_since_its_usage_may_be_taken_out() -> None:
    length = sum(map(len, (TOKEN, USAGE, DONE)))
    headers = [*SSE, (b"content-length", b"%d" % length)]
    node = FakeNode("gpu1", MODEL, script=answers(200, headers, TOKEN, USAGE, DONE))
    exchange = await rig(node).ask(STREAM)
    assert exchange.body == TOKEN + DONE
    assert all(n != b"content-length" for n, _ in exchange.headers)


@pytest.mark.parametrize(
    "codings", [[b"gzip"], [b"identity", b"gzip"], [b"identity, br"], [b"GZIP"], [b"x"]]
)
async def test_compressed_body_is_415_however_it_is_said(codings: list[bytes]) -> None:
    headers = [(b"authorization", b"Bearer " + CALLER_KEY)]
    headers += [(b"content-encoding", coding) for coding in codings]
    exchange = await rig(FakeNode("gpu1", MODEL)).ask(headers=headers)
    assert exchange.status == 415
    assert error_of(exchange)["code"] == "unsupported_content_encoding"


async def test_upstream_never_sees_the_callers_secrets() -> None:
    node = FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY))
    headers = [
        (b"authorization", b"Bearer " + CALLER_KEY),
        (b"origin", b"https://evil.test"),
        (b"accept-encoding", b"gzip"),
        (b"x-wai-node", b"gpu1"),
        (b"content-type", b"application/json"),
    ]
    await rig(node).ask(headers=headers, path="/api/v1/chat/completions", query="beta=true")
    assert node.streams[0].headers == [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"req_test"),
    ]
    assert node.streams[0].target == "/v1/chat/completions?beta=true"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"headers": []}, 401, "missing_api_key"),
        ({"headers": [(b"x-api-key", b"wrong")]}, 401, "invalid_api_key"),
        ({"path": "/v1/files"}, 404, "unknown_url"),
        ({"path": "/v1/../slots"}, 404, "unknown_url"),
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"body": b'{"model":"other"}'}, 404, "model_not_found"),
        ({"body": b"not json"}, 400, "bad_request"),
        ({"content_length": 65 << 20}, 413, "body_too_large"),
        ({"method": "GET", "path": "/v1/models/other"}, 404, "model_not_found"),
    ],
)
async def test_refusals_have_their_status_and_code(
    request_: dict[str, Any], status: int, code: str
) -> None:
    exchange = await rig(FakeNode("gpu1", MODEL)).ask(**request_)
    assert exchange.status == status
    assert error_of(exchange)["code"] == code


async def test_errors_are_said_in_the_routes_dialect() -> None:
    r = rig(FakeNode("gpu1", MODEL))
    anthropic = json.loads((await r.ask(b"", path="/v1/messages")).body)
    assert anthropic["type"] == "error"
    assert anthropic["error"]["type"] == "invalid_request_error"
    ollama = json.loads((await r.ask(b"", path="/api/chat")).body)
    assert isinstance(ollama["error"], str)


async def test_key_is_held_to_its_models_and_nodes() -> None:
    r = rig(FakeNode("gpu1", MODEL), models=("other",))
    assert (await r.ask()).status == 403
    r = rig(FakeNode("gpu1", MODEL), nodes=("gpu2",))
    assert (await r.ask()).status == 503


async def test_pin_chooses_the_node_or_says_why_not() -> None:
    one = FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY))
    two = FakeNode("gpu2", MODEL, script=answers(200, JSON, REPLY))
    idle = FakeNode("gpu3")
    r = rig(one, two, idle)

    async def pinned(name: bytes) -> FakeExchange:
        key = (b"authorization", b"Bearer " + CALLER_KEY)
        return await r.ask(headers=[key, (b"x-wai-node", name)])

    for name in (b"gpu1", b"gpu2"):
        assert (await pinned(name)).header(b"x-wai-node") == name
    assert error_of(await pinned(b"nope"))["code"] == "node_not_found"
    assert error_of(await pinned(b"gpu3"))["code"] == "model_not_found"
    two.is_ready = False
    gone = await pinned(b"gpu2")
    assert (gone.status, gone.header(b"retry-after")) == (503, b"5")


async def test_failed_node_is_replaced_before_the_first_byte() -> None:
    good = FakeNode("a-good", MODEL, script=answers(200, JSON, REPLY))
    for broken in (
        FakeNode("z-broken", MODEL, script=breaks()),
        FakeNode("z-broken", MODEL, script=answers(503, JSON, b'{"error":"loading"}')),
        FakeNode("z-broken", MODEL, script=lambda s: s.sink.on_end()),
    ):
        r = rig(good, broken)
        exchange = await r.ask()
        assert (exchange.status, exchange.body) == (200, REPLY)
        assert exchange.header(b"x-wai-node") == b"a-good"
        assert exchange.header(b"x-wai-attempts") == b"2"
        assert broken.streams[0].body == good.streams[-1].body
        assert r.records[0].attempts == 2


async def test_node_that_refuses_to_open_is_replaced() -> None:
    broken = FakeNode("z-broken", MODEL)
    broken.refuses = TransportError("no connection", Fault.SESSION_LOST)
    r = rig(FakeNode("a-good", MODEL, script=answers(200, JSON, REPLY)), broken)
    assert (await r.ask()).status == 200


async def test_head_that_came_before_the_node_died_is_not_shown() -> None:
    def head_then_gone(stream: FakeStream) -> None:
        stream.sink.on_headers(200, SSE)
        stream.sink.on_reset(Fault.SESSION_LOST, "gone")

    good = FakeNode("a-good", MODEL, script=answers(200, SSE, TOKEN, DONE))
    r = rig(good, FakeNode("z-broken", MODEL, script=head_then_gone))
    assert (await r.ask(STREAM)).body == TOKEN + DONE


async def test_tries_end_at_their_number_with_the_last_failure() -> None:
    nodes = [FakeNode(f"n{i}", MODEL, script=breaks()) for i in range(5)]
    r = rig(*nodes)
    exchange = await r.ask()
    assert (exchange.status, error_of(exchange)["code"]) == (502, "node_lost")
    assert sum(len(node.streams) for node in nodes) == 3
    assert r.records[0].fault == "node_lost"


async def test_only_nodes_refusal_is_passed_as_it_was_said() -> None:
    words = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
    exchange = await rig(FakeNode("gpu1", MODEL, script=answers(503, JSON, words))).ask()
    assert (exchange.status, exchange.body) == (503, words)


async def test_upstreams_own_error_is_passed_and_costs_nothing() -> None:
    words = b'{"error":{"type":"exceed_context_size_error","n_ctx":2048}}'
    r = rig(FakeNode("gpu1", MODEL, script=answers(400, JSON, words)))
    exchange = await r.ask()
    assert (exchange.status, exchange.body) == (400, words)
    assert (r.records[0].status, r.records[0].tokens.prompt) == (400, 0)


@pytest.mark.parametrize(
    ("path", "body", "headers", "chunk", "ending"),
    [
        ("/v1/chat/completions", STREAM, SSE, TOKEN, b'data: {"error":{'),
        ("/v1/messages", STREAM, SSE, MESSAGE_TOKEN, b"event: error\ndata: {"),
        (
            "/api/chat",
            CHAT,
            [(b"content-type", b"application/x-ndjson")],
            b'{"message":{"content":"a"}}\n',
            b'{"error":"the node is gone"}\n',
        ),
    ],
)
async def test_stream_cut_after_its_first_byte_ends_with_an_error_event(
    path: str, body: bytes, headers: Headers, chunk: bytes, ending: bytes
) -> None:
    def cut(stream: FakeStream) -> None:
        stream.sink.on_headers(200, headers)
        stream.sink.on_data(chunk + chunk[:7])
        stream.sink.on_reset(Fault.SESSION_LOST, "the node is gone")

    spare = FakeNode("a-spare", MODEL)
    exchange = await rig(FakeNode("z-gpu", MODEL, script=cut), spare).ask(body, path=path)
    assert exchange.body.startswith(chunk + ending)
    assert exchange.body.endswith(b"\n")
    assert b"[DONE]" not in exchange.body
    assert exchange.ended
    assert spare.streams == []


async def test_plain_answer_cut_after_its_first_byte_is_aborted() -> None:
    def cut(stream: FakeStream) -> None:
        stream.sink.on_headers(200, JSON)
        stream.sink.on_data(LONG_REPLY[:-1])
        stream.sink.on_reset(Fault.UPSTREAM_BROKE, "closed")

    r = rig(FakeNode("gpu1", MODEL, script=cut))
    exchange = await r.ask()
    assert exchange.aborted
    assert not exchange.ended


@pytest.mark.parametrize(
    ("headers", "sent"),
    [(JSON, LONG_REPLY[:-1]), (SSE, TOKEN + TOKEN[:9])],
    ids=["document", "events"],
)
async def test_our_own_bug_in_the_middle_of_an_answer_never_looks_like_its_end(
    headers: Headers, sent: bytes
) -> None:
    def begin(stream: FakeStream) -> None:
        stream.sink.on_headers(200, headers)
        stream.sink.on_data(sent)
        raise RuntimeError("a bug")

    exchange = await rig(FakeNode("gpu1", MODEL, script=begin)).ask(STREAM)
    if headers is JSON:
        assert exchange.aborted
        assert exchange.body == sent
    else:
        assert exchange.ended
        assert exchange.body.startswith(TOKEN + b'data: {"error"')


async def test_caller_who_leaves_frees_the_upstream_and_every_count() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    exchange = FakeExchange(make_request(), [STREAM])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, exchange)
        await until(lambda: bool(node.streams))
        node.streams[0].sink.on_headers(200, SSE)
        node.streams[0].sink.on_data(TOKEN * 3)
        tasks.cancel_scope.cancel()
    assert node.streams[0].reset_with is Fault.CANCELLED
    assert not r.dispatcher._claims
    assert r.gateway._budget.held_bytes == 0
    (record,) = r.records
    assert (record.cancelled, record.status, record.tokens.completion) == (True, 200, 2)
    # Some time later the node finds out what it took.
    found_out = node.streams[0].on_spent
    assert found_out is not None
    found_out(Spent(12, 3, 6, exact=True))
    assert record.tokens == TokenCounts(12, 3, 6, exact=True)


async def test_cut_answer_is_recorded_with_its_fault_and_its_estimate() -> None:
    def cut(stream: FakeStream) -> None:
        stream.sink.on_headers(200, SSE)
        stream.sink.on_data(TOKEN * 4)
        stream.sink.on_reset(Fault.SESSION_LOST, "gone")

    r = rig(FakeNode("a-gpu", MODEL, script=cut), FakeNode("z-gpu", MODEL, script=breaks()))
    await r.ask(STREAM)
    (record,) = r.records
    assert (record.status, record.fault, record.attempts) == (200, "node_lost", 2)
    assert (record.tokens.completion, record.tokens.exact) == (3, False)
    assert record.tokens.prompt > 0


FORM_HEADERS = [
    (b"authorization", b"Bearer " + CALLER_KEY),
    (b"content-type", b"multipart/form-data; boundary=B"),
]
FORM_HEAD = (
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
)
TRANSCRIPTIONS = "/v1/audio/transcriptions"


async def test_answer_before_the_whole_upload_ends_the_upload() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node, limits=GatewayLimits(routing_body_bytes=100))
    request = make_request(path=TRANSCRIPTIONS, headers=FORM_HEADERS)
    exchange = FakeExchange(request, [FORM_HEAD + b"x" * 200], stays_open=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, exchange)
        await until(lambda: bool(node.streams and node.streams[0].written))
        node.streams[0].answer(400, JSON, b"{}")
    assert exchange.status == 400
    assert node.streams[0].reset_with is Fault.CANCELLED


async def test_endless_refusal_is_not_collected() -> None:
    def flood(stream: FakeStream) -> None:
        stream.sink.on_headers(503, JSON)
        for _ in range(100):
            stream.sink.on_data(b"x" * 16_384)

    node = FakeNode("gpu1", MODEL, script=flood)
    exchange = await rig(node).ask()
    assert (exchange.status, len(exchange.body)) == (503, 65_536)
    assert node.streams[0].reset_with is Fault.CANCELLED


async def test_slow_caller_withholds_credit_until_he_reads_again() -> None:
    piece = TOKEN * 80  # worth a CREDIT
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node) as exchange:
        stream = node.streams[0]
        stream.sink.on_headers(200, SSE)
        stream.sink.on_data(piece)
        assert stream.consumed == len(piece)
        exchange.pause()
        stream.sink.on_data(piece)
        stream.sink.on_data(piece)
        assert stream.consumed == len(piece)
        exchange.resume()
        assert stream.consumed == 3 * len(piece)
        stream.sink.on_data(DONE)
        stream.sink.on_end()
    assert exchange.ended


async def test_tokens_are_not_credited_one_by_one() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node):
        stream = node.streams[0]
        stream.sink.on_headers(200, SSE)
        few = CREDIT_EVERY_BYTES // len(TOKEN)
        for _ in range(few):
            stream.sink.on_data(TOKEN)
        assert stream.consumed == 0
        stream.sink.on_data(TOKEN)
        assert stream.consumed == (few + 1) * len(TOKEN)
        stream.sink.on_end()


async def test_silent_upstream_times_out_by_each_limit() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    silent = FakeExchange(make_request(), [CHAT])
    stalled = FakeExchange(make_request(), [STREAM])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, silent)
        tasks.start_soon(r.gateway.handle, stalled)
        await until(lambda: len(node.streams) == 2)
        sink = node.streams[1].sink
        sink.on_headers(200, SSE)
        r.clock.advance(599)
        sink.on_data(TOKEN)
        assert not silent.started
        r.clock.advance(1)
        await until(lambda: silent.over)
        r.clock.advance(298)
        sink.on_data(TOKEN)
        r.clock.advance(299)
        assert not stalled.ended
        r.clock.advance(1)
    assert (silent.status, error_of(silent)["code"]) == (504, "upstream_timeout")
    assert stalled.body.endswith(b"\n\n")
    assert b"upstream_timeout" in stalled.body
    assert [stream.reset_with for stream in node.streams] == [Fault.UPSTREAM_TIMEOUT] * 2


async def test_long_wait_is_kept_alive_by_comments() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node) as exchange:
        r.clock.advance(14)
        assert not exchange.started
        r.clock.advance(1)
        r.clock.advance(15)
        assert exchange.body == b": waiting\n\n" * 2
        node.streams[0].answer(200, SSE, TOKEN, DONE)
    assert exchange.body.startswith(b": waiting\n\n: waiting\n\n: x-wai-node: gpu1")
    assert exchange.body.endswith(b"\n\n" + TOKEN + DONE)
    r.clock.advance(100)
    assert exchange.ended


async def test_node_that_dies_under_a_heartbeat_is_still_replaced() -> None:
    first = FakeNode("z-first", MODEL)
    second = FakeNode("a-second", MODEL, script=answers(200, SSE, TOKEN, DONE))
    r = rig(first, second)
    async with r.asking(first) as exchange:
        r.clock.advance(15)
        first.streams[0].sink.on_reset(Fault.SESSION_LOST, "gone")
    assert exchange.body.endswith(TOKEN + DONE)


@pytest.mark.parametrize("status", [400, 503])
async def test_error_after_a_heartbeat_is_an_event(status: int) -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node) as exchange:
        r.clock.advance(15)
        node.streams[0].answer(status, JSON, b'{"error":{"message":"too long"}}')
    assert b'data: {"error":{"message":"too long"' in exchange.body
    assert exchange.ended


async def test_no_heartbeat_for_who_declines_or_does_not_stream() -> None:
    for headers, body in (([(b"x-wai-heartbeat", b"0")], STREAM), ([], CHAT)):
        node = FakeNode("gpu1", MODEL)
        r = rig(node)
        key = (b"authorization", b"Bearer " + CALLER_KEY)
        exchange = FakeExchange(make_request(headers=[key, *headers]), [body])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.gateway.handle, exchange)
            await until(lambda node=node: bool(node.streams))  # type: ignore[misc]
            r.clock.advance(20)
            assert not exchange.started
            tasks.cancel_scope.cancel()


LONG = [b'{"messages":["', *[b"x" * 900] * 80, b'"],"stream":true,', b'"model":"m"}']


@pytest.mark.parametrize("memory", [256 << 20, 10])
async def test_a_long_body_is_sent_again_to_another_node(memory: int) -> None:
    limits = GatewayLimits(routing_body_bytes=1000, held_total_bytes=memory)
    busy = [*JSON, (b"retry-after", b"1")]
    nodes = [
        FakeNode("z-gpu", MODEL, script=answers(503, busy, b'{"error":{"message":"busy"}}')),
        FakeNode("a-spare", MODEL, script=answers(200, SSE, TOKEN, USAGE, DONE)),
    ]
    r = rig(*nodes, limits=limits, tpm=1_000_000)
    exchange = FakeExchange(make_request(), LONG)
    await r.gateway.handle(exchange)
    assert exchange.body == TOKEN + DONE
    bodies = [node.streams[0].body for node in nodes]
    assert bodies[0] == bodies[1]
    expected = {**json.loads(b"".join(LONG)), "stream_options": {"include_usage": True}}
    assert json.loads(bodies[1]) == expected
    headers = dict(nodes[1].streams[0].headers)
    assert headers[b"content-length"] == b"%d" % len(bodies[1])
    (record,) = r.records
    assert (record.attempts, record.stream) == (2, True)
    assert (record.tokens.prompt, record.tokens.exact) == (9, True)
    assert r.gateway._budget.held_bytes == r.gateway._spool.budget.held_bytes == 0


async def test_an_answer_that_begins_early_does_not_cut_its_request_short() -> None:
    node = FakeNode("gpu1", MODEL)
    node.congested = True
    r = rig(node, limits=GatewayLimits(routing_body_bytes=1000))
    exchange = FakeExchange(make_request(), LONG)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, exchange)
        await until(lambda: bool(node.streams and node.streams[0].written))
        stream = node.streams[0]
        stream.sink.on_headers(200, SSE)
        stream.sink.on_data(TOKEN)
        assert exchange.body == TOKEN
        node.congested = False
        stream.room.set()
        await until(lambda: stream.ended)
        assert r.gateway._budget.held_bytes == 0  # no sooner, and no later
        stream.sink.on_data(DONE)
        stream.sink.on_end()
    assert json.loads(stream.body)["messages"] == ["x" * 900 * 80]
    assert exchange.body == TOKEN + DONE


async def test_a_long_body_that_waits_gets_heartbeats() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node, limits=GatewayLimits(routing_body_bytes=1000))
    exchange = FakeExchange(make_request(), LONG)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, exchange)
        await until(lambda: bool(node.streams and node.streams[0].ended))
        r.clock.advance(20)
        assert exchange.body == b": waiting\n\n"
        tasks.cancel_scope.cancel()


async def test_a_long_body_counts_against_the_keys_tokens() -> None:
    node = FakeNode("gpu1", MODEL, script=answers(200, SSE, TOKEN, USAGE, DONE))
    r = rig(node, limits=GatewayLimits(routing_body_bytes=1000), tpm=1000)
    exchange = FakeExchange(make_request(), LONG)
    await r.gateway.handle(exchange)
    assert exchange.status == 429
    assert error_of(exchange)["code"] == "rate_limit_exceeded"
    assert node.streams == []


async def test_a_long_form_is_sent_again_with_what_came_meanwhile() -> None:
    limits = GatewayLimits(routing_body_bytes=1000)

    def fail(stream: FakeStream) -> None:
        stream.sink.on_reset(Fault.SESSION_LOST, "the node is gone")

    nodes = [
        FakeNode("z-gpu", MODEL, script=fail),
        FakeNode("a-spare", MODEL, script=answers(200, JSON, b'{"text":"hi"}')),
    ]
    r = rig(*nodes, limits=limits)
    pieces = [FORM_HEAD, *[b"x" * 900] * 80, b"\r\n--B--\r\n"]
    length = sum(map(len, pieces))
    request = make_request(path=TRANSCRIPTIONS, headers=FORM_HEADERS, content_length=length)
    exchange = FakeExchange(request, list(pieces))
    await r.gateway.handle(exchange)
    assert exchange.status == 200
    assert [node.streams[0].body for node in nodes] == [b"".join(pieces)] * 2
    assert dict(nodes[1].streams[0].headers)[b"content-length"] == b"%d" % length
    assert r.gateway._budget.held_bytes == 0


async def test_upload_waits_for_the_upstream() -> None:
    limits = GatewayLimits(routing_body_bytes=1000)
    node = FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY))
    node.congested = True
    r = rig(node, limits=limits)
    exchange = FakeExchange(make_request(), [b'{"model":"m","x":"' + b"x" * 2000, b"y" * 9, b'"}'])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, exchange)
        await until(lambda: bool(node.streams and node.streams[0].written))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert len(node.streams[0].written) == 1
        node.congested = False
        node.streams[0].room.set()
    assert exchange.body == REPLY


async def test_body_over_its_bound_is_413_and_goes_nowhere() -> None:
    limits = GatewayLimits(routing_body_bytes=100, body_bytes=5000)
    node = FakeNode("gpu1", MODEL)
    r = rig(node, limits=limits)
    exchange = FakeExchange(make_request(), [b'{"model":"m","x":"', *[b"x" * 1000] * 9])
    await r.gateway.handle(exchange)
    assert exchange.status == 413
    assert node.streams == []


async def test_form_over_its_bound_ends_the_upload_with_413() -> None:
    limits = GatewayLimits(routing_body_bytes=100, body_bytes=5000)
    node = FakeNode("gpu1", MODEL)
    r = rig(node, limits=limits)
    request = make_request(path=TRANSCRIPTIONS, headers=FORM_HEADERS)
    exchange = FakeExchange(request, [FORM_HEAD, *[b"x" * 1000] * 9])
    await r.gateway.handle(exchange)
    assert exchange.status == 413
    assert node.streams[0].reset_with is Fault.BODY_TOO_LARGE


async def test_bodies_held_together_have_a_bound() -> None:
    limits = GatewayLimits(held_total_bytes=10, spooled_total_bytes=20)
    r = rig(FakeNode("gpu1", MODEL), limits=limits)
    exchange = await r.ask()
    assert (exchange.status, exchange.header(b"retry-after")) == (503, b"1")
    assert b"on its disk" in exchange.body
    assert r.gateway._budget.held_bytes == r.gateway._spool.budget.held_bytes == 0


async def test_audio_upload_is_routed_by_its_form() -> None:
    node = FakeNode("gpu1", MODEL, script=answers(200, JSON, b'{"text":"hi"}'))
    headers = [
        (b"authorization", b"Bearer " + CALLER_KEY),
        (b"content-type", b"multipart/form-data; boundary=B"),
    ]
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\r\n'
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--B--\r\n'
    )
    exchange = await rig(node).ask(form, path="/v1/audio/transcriptions", headers=headers)
    assert exchange.status == 200
    assert node.streams[0].body == form


async def test_models_are_merged_over_nodes() -> None:
    one = FakeNode("gpu1", MODEL, ModelStatus(id="org/x:Q4", upstream="u", context_tokens=512))
    two = FakeNode("gpu2", ModelStatus(id="org/x:Q4", upstream="u", context_tokens=4096))
    r = rig(one, two)
    listed = json.loads((await r.ask(b"", method="GET", path="/api/v1/models")).body)
    assert [model["id"] for model in listed["data"]] == ["m", "org/x:Q4"]
    single = await r.ask(b"", method="GET", path="/v1/models/org%2Fx:Q4")
    assert json.loads(single.body)["wai"]["nodes"] == ["gpu1", "gpu2"]
    assert json.loads(single.body)["wai"]["context_tokens"] == 4096
    tags = json.loads((await r.ask(b"", method="GET", path="/api/tags")).body)
    assert [model["name"] for model in tags["models"]] == ["m", "org/x:Q4"]
    running = json.loads((await r.ask(b"", method="GET", path="/api/ps")).body)
    assert [model["name"] for model in running["models"]] == ["m", "org/x:Q4"]


async def test_bug_in_the_relay_is_a_500_without_its_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def explode(stream: FakeStream) -> None:
        raise ZeroDivisionError("secret detail")

    exchange = await rig(FakeNode("gpu1", MODEL, script=explode)).ask()
    assert exchange.status == 500
    assert b"secret" not in exchange.body
    assert "ZeroDivisionError" in caplog.text


async def test_task_cancelled_while_the_body_is_awaited_is_recorded() -> None:
    r = rig(FakeNode("gpu1", MODEL))
    exchange = FakeExchange(make_request(), [CHAT[:9]], stays_open=True)
    task = asyncio.ensure_future(r.gateway.handle(exchange))
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (r.records[0].cancelled, r.records[0].status) == (True, 499)
    assert r.gateway._budget.held_bytes == 0


async def test_llama_cpp_is_asked_to_count_in_every_chunk_and_nobody_else_is() -> None:
    llama = ModelStatus(id="m", upstream="any@127.0.0.1:8080", capabilities=(PER_TOKEN_TIMINGS,))
    timed = TOKEN[:-3] + b',"timings":{"cache_n":0,"prompt_n":9,"predicted_n":1}}\n\n'
    node = FakeNode("gpu1", llama, script=answers(200, SSE, timed, USAGE, DONE))
    exchange = await rig(node).ask(STREAM)
    assert json.loads(node.streams[0].body)["timings_per_token"] is True
    assert exchange.body == TOKEN + DONE
    asked = STREAM[:-1] + b',"timings_per_token":true}'
    assert timed in (await rig(node).ask(asked)).body
    other = FakeNode("gpu1", MODEL, script=answers(200, SSE, TOKEN, USAGE, DONE))
    await rig(other).ask(STREAM)
    assert "timings_per_token" not in json.loads(other.streams[0].body)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_refuses_our_fields_is_asked_without_them(status: int) -> None:
    refusal = b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"]}]}'

    def strict(stream: FakeStream) -> None:
        if b"stream_options" in stream.body:
            stream.answer(status, JSON, refusal)
        else:
            stream.answer(200, SSE, TOKEN, TOKEN, DONE)

    node = FakeNode("gpu1", MODEL, script=strict)
    r = rig(node)
    exchange = await r.ask(STREAM)
    assert exchange.body == TOKEN + TOKEN + DONE
    assert [b"stream_options" in stream.body for stream in node.streams] == [True, False]
    (record,) = r.records
    assert (record.attempts, record.tokens.exact) == (1, False)
    assert record.tokens.prompt > 0
    await r.ask(STREAM)  # it is remembered
    assert len(node.streams) == 3
    r.clock.advance(2 * 3600)
    await r.ask(STREAM)  # but not for ever
    assert len(node.streams) == 5
    # A caller's own field is his own mistake, and passes.
    asked = STREAM[:-1] + b',"stream_options":{"include_usage":true}}'
    exchange = await r.ask(asked)
    assert (exchange.status, exchange.body) == (status, refusal)
    assert len(node.streams) == 6


async def test_a_server_that_refuses_the_request_anyway_is_not_taken_for_strict() -> None:
    refusal = b'{"error":{"message":"unknown role"}}'
    node = FakeNode("gpu1", MODEL, script=answers(400, JSON, refusal))
    r = rig(node)
    exchange = await r.ask(STREAM)
    assert (exchange.status, exchange.body) == (400, refusal)
    assert len(node.streams) == 2
    node.script = answers(200, SSE, TOKEN, USAGE, DONE)
    await r.ask(STREAM)
    assert r.records[-1].tokens.exact


async def test_what_only_one_upstream_of_a_node_understands_is_not_asked() -> None:
    able = ModelStatus(id="m", upstream="a@127.0.0.1:1", capabilities=(PER_TOKEN_TIMINGS,))
    node = FakeNode("gpu1", able, MODEL, script=answers(200, SSE, TOKEN, USAGE, DONE))
    await rig(node).ask(STREAM)  # the node chooses which of the two gets it
    assert "timings_per_token" not in json.loads(node.streams[0].body)


async def test_refusals_say_how_long_it_waited_and_what_is_in_the_way() -> None:
    exchange = await rig(FakeNode("gpu1", MODEL, ready=False)).ask()
    assert exchange.status == 503
    assert exchange.header(b"x-wai-reason") == b"no_node_available"
    assert exchange.header(b"x-wai-attempts") == b"0"
    assert exchange.header(b"x-wai-queue-ms") == b"0"
    assert exchange.header(b"x-wai-node") is None


async def test_even_who_has_no_key_is_told_what_is_in_the_way() -> None:
    exchange = await rig(FakeNode("gpu1", MODEL)).ask(headers=[])
    assert exchange.status == 401
    assert exchange.header(b"x-wai-reason") == b"missing_api_key"
    assert exchange.header(b"x-wai-attempts") == b"0"
    assert exchange.header(b"x-wai-queue-ms") == b"0"


async def test_running_requests_can_be_seen_and_explained() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node):
        r.clock.advance(2)
        (view,) = r.gateway.live.views(r.clock())
        assert (view.state, view.node, view.ttft_ms, view.age_ms) == ("prefill", "gpu1", None, 2000)
        stream = node.streams[0]
        stream.sink.on_headers(200, SSE)
        for _ in range(4):  # the first of them names the role
            stream.sink.on_data(TOKEN)
        r.clock.advance(2)
        (view,) = r.gateway.live.views(r.clock())
        assert (view.state, view.ttft_ms, view.completion_tokens) == ("streaming", 2000, 3)
        assert view.tokens_per_s == 1.0
        stream.sink.on_data(DONE)
        stream.sink.on_end()
    assert len(r.gateway.live) == 0
    record = r.gateway.explanations.find("req_test")
    assert record is not None
    (attempt,) = explain(record).attempts
    assert (attempt.node, attempt.reason, attempt.fault) == ("gpu1", "least-busy", "")


async def test_every_attempt_is_explained() -> None:
    r = rig(
        FakeNode("gpu2", MODEL, script=breaks()),
        FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY)),
    )
    await r.ask()
    attempts = explain(r.records[0]).attempts
    assert [(a.node, a.fault) for a in attempts] == [("gpu2", "node_lost"), ("gpu1", "")]


@pytest.mark.parametrize("begun", [False, True])
async def test_an_admin_can_end_a_request_and_its_caller_is_told(begun: bool) -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node) as exchange:
        if begun:
            node.streams[0].sink.on_headers(200, SSE)
            node.streams[0].sink.on_data(TOKEN)
        live = r.gateway.live.find("req_test")
        assert live is not None
        live.end()
    assert exchange.ended
    assert b"ended by the relay's admin" in exchange.body
    assert exchange.status == (200 if begun else 499)
    assert node.streams[0].reset_with is Fault.CANCELLED
    assert r.records[0].cancelled


async def test_an_admin_can_end_a_request_that_is_still_sending_its_body() -> None:
    r = rig(FakeNode("gpu1", MODEL))
    exchange = FakeExchange(make_request(), [], stays_open=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, exchange)
        await until(lambda: len(r.gateway.live) == 1)
        await anyio.lowlevel.checkpoint()
        live = r.gateway.live.find("req_test")
        assert live is not None
        live.end()
    assert exchange.status == 499
    assert r.records[0].cancelled


def too_long(stream: FakeStream) -> None:
    """As llama-server refuses a prompt."""
    error = {"code": 400, "message": "request (2822 tokens) exceeds the available context size"}
    error |= {"type": "exceed_context_size_error", "n_prompt_tokens": 2822, "n_ctx": 2048}
    stream.answer(400, JSON, json.dumps({"error": error}).encode())


async def test_a_prompt_that_was_longer_than_estimated_goes_where_it_fits() -> None:
    r = rig(
        FakeNode("a", MODEL, script=answers(200, JSON, REPLY)),
        FakeNode("b", MODEL, script=too_long),
    )
    exchange = await r.ask()
    assert (exchange.status, exchange.header(b"x-wai-node")) == (200, b"a")
    assert exchange.header(b"x-wai-attempts") == b"2"


def also_too_long(stream: FakeStream) -> None:
    """As vLLM refuses a prompt."""
    message = "This model's maximum context length is 2048 tokens. However, you requested 3000"
    document = {"object": "error", "message": message, "type": "BadRequestError", "code": 400}
    stream.answer(400, JSON, json.dumps(document).encode())


async def test_a_refusal_for_length_without_a_code_is_understood_too() -> None:
    r = rig(
        FakeNode("a", MODEL, script=answers(200, JSON, REPLY)),
        FakeNode("b", MODEL, script=also_too_long),
    )
    assert (await r.ask()).status == 200
    r = rig(FakeNode("b", MODEL, script=also_too_long))
    assert b"maximum context length is 2048 tokens" in (await r.ask()).body


async def test_anthropics_clients_find_the_words_that_they_look_for() -> None:
    r = rig(FakeNode("b", MODEL, script=too_long))
    exchange = await r.ask(path="/v1/messages")
    assert exchange.status == 400
    message = error_of(exchange)["message"]
    assert message.startswith("prompt is too long: request (2822 tokens)")


async def test_a_prompt_that_fits_nowhere_is_the_upstreams_400() -> None:
    r = rig(FakeNode("b", MODEL, script=too_long))
    exchange = await r.ask()
    assert (exchange.status, error_of(exchange)["n_prompt_tokens"]) == (400, 2822)
    assert r.records[0].fault == "context_length_exceeded"
    assert all(name != b"retry-after" for name, _ in exchange.headers)


async def test_a_prompt_too_long_for_who_is_there_waits_for_who_will_be_back() -> None:
    r = rig(FakeNode("a", MODEL, ready=False), FakeNode("b", MODEL, script=too_long))
    exchange = await r.ask()
    assert exchange.status == 503
    assert exchange.header(b"retry-after")
    assert exchange.header(b"x-wai-attempts") == b"1"


def has_each_attempt_wait(r: Rig, patched: pytest.MonkeyPatch, wait_s: float) -> list[float]:
    """How much patience each has when it begins to wait."""
    choose = r.dispatcher.acquire
    patience_s: list[float] = []

    async def wait_and_choose(info: RequestInfo) -> Lease:
        patience_s.append(info.wait_until - r.clock.now)
        r.clock.now += wait_s
        return await choose(info)

    patched.setattr(r.dispatcher, "acquire", wait_and_choose)
    return patience_s


async def test_a_second_attempt_has_only_the_patience_that_the_first_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks_after_a_while(stream: FakeStream) -> None:
        r.clock.now += 15.0
        breaks()(stream)

    r = rig(
        FakeNode("b", MODEL, script=breaks_after_a_while), FakeNode("a", MODEL, script=breaks())
    )
    patience_s = has_each_attempt_wait(r, monkeypatch, 20.0)
    await r.ask()
    # What an attempt takes is no waiting.
    assert patience_s[:2] == [MAX_WAIT_S, MAX_WAIT_S - 20.0]


async def test_an_answer_that_broke_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies_late(stream: FakeStream) -> None:
        stream.sink.on_headers(200, SSE)
        stream.sink.on_data(TOKEN)
        breaks()(stream)

    r = rig(FakeNode("b", MODEL, script=dies_late), continue_=True)
    patience_s = has_each_attempt_wait(r, monkeypatch, 20.0)
    await r.ask(STREAM)
    assert patience_s[:2] == [MAX_WAIT_S, MAX_WAIT_S]


async def test_a_400_of_another_kind_is_passed_on_and_not_tried_again() -> None:
    bad = b'{"error":{"message":"temperature must be a number","type":"invalid_request_error"}}'
    r = rig(FakeNode("b", MODEL, script=answers(400, JSON, bad)), FakeNode("a", MODEL))
    exchange = await r.ask()
    assert (exchange.status, exchange.body) == (400, bad)
    assert exchange.header(b"x-wai-attempts") == b"1"
    assert (r.records[0].status, r.records[0].fault) == (400, "")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_redirect_of_a_model_server_is_a_502_that_names_nobody_else(status: int) -> None:
    location = [(b"location", b"https://elsewhere.test/"), *JSON]
    exchange = await rig(FakeNode("gpu1", MODEL, script=answers(status, location, b"x"))).ask()
    assert exchange.status == 502
    assert "redirect" in error_of(exchange)["message"]
    assert b"elsewhere" not in exchange.body
    assert exchange.header(b"location") is None


async def test_another_node_answers_where_one_redirects() -> None:
    first = FakeNode("gpu1", MODEL, script=answers(307, [(b"location", b"/")]))
    second = FakeNode("gpu2", MODEL, script=answers(200, JSON, REPLY))
    exchange = await rig(first, second).ask()
    assert (exchange.status, exchange.body) == (200, REPLY)


@pytest.mark.parametrize("status", [200, 400, 404, 500, 503])
async def test_of_an_answers_headers_only_harmless_ones_reach_the_caller(status: int) -> None:
    headers = [
        *JSON,
        (b"x-accel-redirect", b"/internal/"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"set-cookie", b"a=b"),
        (b"access-control-allow-origin", b"*"),
        (b"www-authenticate", b"Basic"),
        (b"x-anything", b"else"),
        (b"openai-processing-ms", b"7"),
    ]
    exchange = await rig(FakeNode("gpu1", MODEL, script=answers(status, headers, REPLY))).ask()
    names = {name for name, _ in exchange.headers if not name.startswith(b"x-wai-")}
    ours = {b"content-length", b"retry-after"}  # of an answer that the relay has read whole
    assert names - ours == {b"content-type", b"openai-processing-ms"}


async def test_a_head_that_can_not_be_sent_ends_in_an_error_and_not_in_a_wait() -> None:
    class Strict(FakeExchange):
        def start(self, status: int, headers: Headers) -> None:
            if status == 200:
                raise LocalProtocolError("a response header contains a control character")
            super().start(status, headers)

    def answer(stream: FakeStream) -> None:
        with pytest.raises(LocalProtocolError):
            stream.answer(200, JSON, REPLY)
        stream.sink.on_reset(Fault.INTERNAL, "this end failed")  # as the session does then

    r = rig(FakeNode("gpu1", MODEL, script=answer))
    exchange = Strict(make_request(), [CHAT])
    with anyio.fail_after(30):
        await r.gateway.handle(exchange)
    assert exchange.over
    assert exchange.status >= 500


# -- a failure is what the caller would call one

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
ERROR_EVENT = b'data: {"error":{"message":"out of memory"}}\n\n'
REFUSED = b'{"error":{"message":"not now"}}'


@pytest.mark.parametrize(
    "script",
    [
        *(
            answers(status, JSON, REFUSED)
            for status in (
                *(401, 402, 403, 404, 405, 408, 409, 410, 425, 429, 451),
                *(500, 501, 502, 503, 504, 507, 520, 529),
            )
        ),
        answers(200, SSE, ERROR_EVENT),
        answers(200, SSE, ROLE, ERROR_EVENT),
        answers(200, SSE, b": keepalive\n\n", ROLE),
        answers(200, SSE),
        answers(200, JSON, REFUSED),
        answers(200, [(b"content-type", b"text/html")], b"<html>"),
        answers(200, SSE, REPLY),
    ],
)
async def test_an_upstream_that_fails_in_any_way_is_replaced_before_content(
    script: Callable[[FakeStream], None],
) -> None:
    good = FakeNode("a-good", MODEL, script=answers(200, SSE, ROLE, TOKEN, DONE))
    r = rig(FakeNode("z-bad", MODEL, script=script), good)
    exchange = await r.ask(STREAM)
    assert (exchange.status, exchange.body) == (200, ROLE + TOKEN + DONE)
    assert exchange.header(b"x-wai-node") == b"a-good"
    assert exchange.header(b"x-wai-attempts") == b"2"


async def test_the_caller_gets_the_upstreams_own_error_where_all_fail() -> None:
    nodes = [FakeNode(name, MODEL, script=answers(500, JSON, REFUSED)) for name in "ab"]
    r = rig(*nodes)
    exchange = await r.ask(STREAM)
    assert (exchange.status, exchange.body) == (500, REFUSED)
    assert (r.dispatcher.blamed, sorted(r.dispatcher.acquitted)) == ([], ["a", "b"])


@pytest.mark.parametrize("status", [401, 403])
async def test_an_upstreams_401_is_the_relays_fault_and_not_a_bad_key(status: int) -> None:
    exchange = await rig(FakeNode("a", MODEL, script=answers(status, JSON, REFUSED))).ask()
    assert (exchange.status, error_of(exchange)["code"]) == (502, "upstream_broke")


@pytest.mark.parametrize("status", [413, 422])
async def test_a_callers_own_mistake_is_not_tried_elsewhere(status: int) -> None:
    spare = FakeNode("a-spare", MODEL)
    r = rig(FakeNode("z", MODEL, script=answers(status, JSON, REFUSED)), spare)
    exchange = await r.ask()
    assert (exchange.status, exchange.body, spare.streams) == (status, REFUSED, [])


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_who_finds_fault_with_a_request_has_not_served_what_another_failed(
    status: int,
) -> None:
    first = FakeNode("z", MODEL, script=answers(500, JSON, REFUSED))
    second = FakeNode("a", MODEL, script=answers(status, JSON, REFUSED))
    r = rig(first, second)
    exchange = await r.ask(STREAM)
    assert (exchange.status, exchange.body) == (status, REFUSED)
    assert (r.dispatcher.blamed, r.dispatcher.acquitted) == ([], ["z"])
    assert r.dispatcher.refused == ["a"]


async def test_a_missing_route_said_by_405_is_translated_all_the_same() -> None:
    def answer(stream: FakeStream) -> None:
        if stream.target == "/v1/chat/completions":
            stream.answer(200, JSON, b'{"choices":[{"message":{"content":"Hi."}}]}')
        else:
            stream.answer(405, JSON, b'{"detail":"Method Not Allowed"}')

    r = rig(FakeNode("a", MODEL, script=answer))
    exchange = await r.ask(CHAT[:-1] + b',"max_tokens":5}', path="/v1/messages")
    assert (exchange.status, json.loads(exchange.body)["content"][0]["text"]) == (200, "Hi.")


@pytest.mark.parametrize(
    "script",
    [
        answers(200, JSON, b'{"error":{"message":"out of memory"}}'),
        answers(200, [(b"content-type", b"text/html")], b"<html>"),
        answers(200, [], b"upstream connect error"),
    ],
)
async def test_an_error_that_is_no_stream_is_replaced_after_a_heartbeat_too(
    script: Callable[[FakeStream], None],
) -> None:
    bad = FakeNode("z-bad", MODEL)
    r = rig(bad, FakeNode("a-good", MODEL, script=answers(200, SSE, ROLE, TOKEN, DONE)))
    async with r.asking(bad) as exchange:
        r.clock.advance(15)
        script(bad.streams[0])
    assert exchange.body.endswith(ROLE + TOKEN + DONE)


async def test_comments_gain_a_silent_upstream_no_time() -> None:
    bad = FakeNode("z-bad", MODEL)
    good = FakeNode("a-good", MODEL, script=answers(200, SSE, ROLE, TOKEN, DONE))
    r = rig(bad, good)
    async with r.asking(bad) as exchange:
        bad.streams[0].sink.on_headers(200, SSE)
        for _ in range(600):
            assert not good.streams
            bad.streams[0].sink.on_data(b": keepalive\n\n" + ROLE)
            r.clock.advance(1)
    assert exchange.body.endswith(ROLE + TOKEN + DONE)
    assert bad.streams[0].reset_with is Fault.UPSTREAM_TIMEOUT
    assert r.dispatcher.blamed == ["z-bad"]


FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    "after",
    [
        (ERROR_EVENT, DONE),  # as vLLM does
        (b'data: {"object":"error","message":"x"}\n\n', DONE),
        (b'data: { "error": "x"}\n\n', DONE),
        (b'event: error\ndata: {"message":"x"}\n\n', DONE),
        (FINISH.replace(b"stop", b"error"), DONE),
        (ERROR_EVENT, b": bye\n\n"),
    ],
)
async def test_an_error_in_mid_answer_is_one_whatever_follows_it(after: tuple[bytes, ...]) -> None:
    r = rig(FakeNode("a", MODEL, script=answers(200, SSE, TOKEN, *after)))
    exchange = await r.ask(STREAM)
    assert exchange.body == TOKEN + b"".join(after)
    assert r.records[0].fault == "upstream_broke"


@pytest.mark.parametrize(
    "after",
    [
        (FINISH, USAGE, b": it cost nothing\n\n"),
        (FINISH, b": one\n\n", b": two\n\n", b": three\n\n"),
        (FINISH, USAGE, b'data: {"choices":[],"more":1}\n\n'),
        (DONE, b": one\n\n", b": two\n\n"),
        (b'data: {"error":null,"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',),
    ],
)
async def test_an_end_is_one_whatever_follows_it(after: tuple[bytes, ...]) -> None:
    r = rig(FakeNode("a", MODEL, script=answers(200, SSE, TOKEN, *after)))
    await r.ask(STREAM)
    assert r.records[0].fault == ""


async def test_no_speed_is_told_of_a_stream_that_came_in_one_piece() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node):
        sink = node.streams[0].sink
        sink.on_headers(200, SSE)
        sink.on_data(TOKEN * 200)
        r.clock.advance(0.001)
        sink.on_data(DONE)
        sink.on_end()
    assert r.records[0].tokens_per_second is None


async def test_a_stream_that_stops_without_its_end_ends_visibly() -> None:
    r = rig(FakeNode("a", MODEL, script=answers(200, SSE, ROLE, TOKEN)))
    exchange = await r.ask(STREAM)
    assert exchange.body.startswith(ROLE + TOKEN + b'data: {"error"')
    assert r.records[0].fault == "upstream_broke"


async def test_a_stream_that_stops_within_an_event_ends_with_an_error_by_itself() -> None:
    half = TOKEN.rstrip()[:-5]
    r = rig(FakeNode("a", MODEL, script=answers(200, SSE, ROLE, TOKEN, half)))
    exchange = await r.ask(STREAM)
    assert exchange.body.startswith(ROLE + TOKEN + b'data: {"error"')
    ollama = ModelStatus(id="m", upstream="ollama", apis=("ollama",))
    line = b'{"message":{"content":"Hi"},"done":false}\n'
    ndjson = [(b"content-type", b"application/x-ndjson")]
    r = rig(FakeNode("a", ollama, script=answers(200, ndjson, line, line[:-5])))
    exchange = await r.ask(STREAM, path="/api/chat")
    assert exchange.body.startswith(line + b'{"error":')


async def test_an_error_event_in_mid_answer_is_recorded_and_not_said_twice() -> None:
    r = rig(FakeNode("a", MODEL, script=answers(200, SSE, TOKEN, ERROR_EVENT)))
    exchange = await r.ask(STREAM)
    assert exchange.body == TOKEN + ERROR_EVENT
    assert r.records[0].fault == "upstream_broke"


async def test_the_first_token_is_the_first_content_and_heartbeats_go_on() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node) as exchange:
        sink = node.streams[0].sink
        sink.on_headers(200, SSE)
        r.clock.advance(1)
        sink.on_data(b": keepalive\n\n" + ROLE)
        r.clock.advance(15)
        assert exchange.body == b": waiting\n\n"
        r.clock.advance(4)
        sink.on_data(TOKEN)
        passed = exchange.body
        r.clock.advance(14)
        assert exchange.body == passed
        r.clock.advance(1)  # forty seconds of thought are bridged as well
        assert exchange.body == passed + b": waiting\n\n"
        sink.on_data(DONE)
        sink.on_end()
    assert b": keepalive\n\n" + ROLE + TOKEN in exchange.body
    record = r.records[0]
    assert (record.first_byte_ms, record.ttft_ms) == (1000.0, 20000.0)


async def test_no_comment_is_sent_inside_an_event() -> None:
    node = FakeNode("gpu1", MODEL)
    r = rig(node)
    async with r.asking(node) as exchange:
        sink = node.streams[0].sink
        sink.on_headers(200, SSE)
        sink.on_data(TOKEN + b"data: " + b"x" * 70_000)
        r.clock.advance(40)
        assert b"waiting" not in exchange.body
        sink.on_data(b"\n\n" + DONE)
        sink.on_end()


async def test_no_speed_is_told_of_an_answer_that_came_as_one_document() -> None:
    r = rig(FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY)))
    await r.ask()
    assert r.records[0].tokens_per_second is None


@pytest.mark.parametrize(
    ("content_type", "marked"),
    [(b"text/event-stream", True), (b"audio/mpeg", True), (b"application/json", False)],
)
async def test_a_proxy_that_buffers_is_told_not_to_hold_a_stream(
    content_type: bytes, marked: bool
) -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
    node = FakeNode("gpu1", MODEL, script=answers(200, [(b"content-type", content_type)], body))
    exchange = await rig(node).ask()
    assert ((b"x-accel-buffering", b"no") in exchange.headers) is marked


async def test_a_node_that_other_relays_filled_gets_the_request_again_and_no_blame() -> None:
    answered = 0

    def full_often(stream: FakeStream) -> None:
        nonlocal answered
        answered += 1
        if answered < 8:  # more often than a request is tried
            stream.sink.on_reset(Fault.NODE_FULL, "other relays have filled this node")
        else:
            stream.answer(200, JSON, REPLY)

    node = FakeNode("a", MODEL, script=full_often)
    r = rig(node)
    exchange = await r.ask()
    assert exchange.status == 200
    (record,) = r.records
    assert record.attempts == 1
    assert [tried.fault for tried in record.tried] == ["node_full", ""]
    assert record.fault == ""
