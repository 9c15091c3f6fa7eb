"""The node's forwarding: what leaves towards an upstream, and what a fault there does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.harness.llama_server import llama_server
from tests.harness.raw_upstream import (
    RawUpstream,
    Script,
    answering,
    ok,
    raw_upstream,
    read_head,
    read_request,
)
from tests.harness.tiny_gguf import tiny_gguf
from wai_node.forwarding.forward import HOLD_BYTES, Forwarder
from wai_node.upstreams import Board, Probe, Upstream, upstream_at
from wai_node.upstreams.openai import OpenAIUpstream
from wai_node.upstreams.tally import OpenStream, Report, TokensSpent
from wai_node.upstreams.upstream import Ready, Waited
from wai_protocol.errors import Fault, LocalProtocolError, WaiError
from wai_protocol.surface import ROUTES, Headers, Route, Task
from wai_protocol.websocket import accept_token

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHAT = "/v1/chat/completions"


class FakeSession:
    """A session that writes down what it is told. `room`: what `send_data` answers."""

    made: list[FakeSession] = []  # noqa: RUF012 - emptied by `all_is_flushed`

    def __init__(self) -> None:
        self.made.append(self)
        self.flushed = 0
        self.log: list[tuple[object, ...]] = []
        self.room = True
        self.consumed = 0
        self.over = asyncio.Event()
        self.some = asyncio.Event()
        self.headed = asyncio.Event()

    @property
    def core(self) -> FakeSession:
        return self

    def flush(self) -> None:
        self.flushed = len(self.log)

    def send_headers(self, stream_id: int, status: int, headers: Headers) -> None:
        self.log.append(("headers", stream_id, status, headers))
        self.headed.set()

    def send_data(self, stream_id: int, data: bytes) -> bool:
        self.log.append(("data", stream_id, data))
        self.some.set()
        return self.room

    def end_stream(self, stream_id: int) -> None:
        self.log.append(("end", stream_id))
        self.over.set()

    def reset_stream(self, stream_id: int, fault: Fault, reason: str) -> None:
        self.log.append(("reset", stream_id, fault))
        self.over.set()

    def consume(self, stream_id: int, size: int) -> None:
        self.consumed += size

    def emit(self, name: str, value: object) -> None:
        self.log.append(("event", name, value))

    @property
    def payload(self) -> bytes:
        return b"".join(entry[2] for entry in self.log if entry[0] == "data")  # type: ignore[misc]


@pytest.fixture(autouse=True)
def all_is_flushed() -> Iterator[None]:
    """What is asked of a session's core is sent: each test's sessions were flushed at last."""
    FakeSession.made.clear()
    yield
    for session in FakeSession.made:
        assert session.flushed == len(session.log), session.log[session.flushed :]


class Accounts:
    def __init__(self, board: Board) -> None:
        self.board = board

    def started(self, upstream: Upstream, model: str, stream: OpenStream) -> None:
        self.board.started(upstream, model, stream)

    def ended(self, upstream: Upstream, model: str, stream: OpenStream, spent: TokensSpent) -> None:
        self.board.ended(upstream, model, stream, spent)

    def left(self, upstream: Upstream, model: str, stream: OpenStream, report: Report) -> None:
        self.board.left(upstream, model, stream, 0.0, report)

    def measured(
        self, upstream: Upstream, model: str, prefill_tps: float | None, decode_tps: float | None
    ) -> None:
        self.board.measured(upstream, model, prefill_tps, decode_tps)


@asynccontextmanager
async def forwarding(
    *scripts: Script, max_streams: int = 8
) -> AsyncIterator[tuple[Forwarder, Board, RawUpstream]]:
    async with raw_upstream(*scripts) as raw:
        upstream = OpenAIUpstream(raw.url, "node-secret")
        board = Board()
        board.add(upstream)
        board.probed(upstream, Probe((upstream.model("m"),)))
        forwarder = Forwarder(board, Accounts(board), max_streams=max_streams)
        yield forwarder, board, raw
        await upstream.aclose()
        assert forwarder.active_streams == 0
        assert board.active() == {}


async def test_credentials_and_origin_stay_and_the_upstreams_key_goes() -> None:
    seen: list[bytes] = []
    async with forwarding(answering(ok(b"yes", b"Server: x"), seen=seen)) as (forwarder, _, raw):
        session = FakeSession()
        headers = [
            (b"authorization", b"Bearer caller-secret"),
            (b"origin", b"https://evil"),
            (b"x-conversation-id", b"c"),
            (b"content-type", b"application/json"),
        ]
        forwarder.opened(session, 1, "POST", CHAT + "?a=b", headers, "m", ended=False)
        forwarder.data(session, 1, b"{}")
        forwarder.ended(session, 1)
        await session.over.wait()
        request = seen[0]
        assert request.startswith(b"POST /v1/chat/completions?a=b HTTP/1.1\r\n")
        assert b"host: " + raw.url.removeprefix("http://").encode() in request
        assert b"authorization: Bearer node-secret" in request
        assert b"content-length: 2\r\n" in request
        assert not any(word in request for word in (b"caller", b"evil", b"conversation"))
        assert session.log == [
            ("headers", 1, 200, []),
            ("data", 1, b"yes"),
            ("end", 1),
        ]
        assert session.consumed == 2


@pytest.mark.parametrize(
    ("content_type", "announced"),
    [(b"application/json", [(b"content-length", b"3")]), (b"text/event-stream", [])],
)
async def test_the_length_of_a_whole_answer_is_announced(
    content_type: bytes, announced: Headers
) -> None:
    field = (b"content-type", content_type)
    async with forwarding(answering(ok(b"yes", b"Content-Type: " + content_type))) as (
        forwarder,
        *_,
    ):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        assert session.log[0] == ("headers", 1, 200, [field, *announced])


async def test_only_the_nodes_own_list_lets_a_new_route_out() -> None:
    board = Board()
    upstream = OpenAIUpstream("http://127.0.0.1:1")
    board.add(upstream)
    board.probed(upstream, Probe((upstream.model("m"),)))
    route = Route("POST", "/v2/generate", "openai", Task.GENERATE)
    for routes, fault in (
        (ROUTES, Fault.ROUTE_REFUSED),
        (ROUTES.extended([route]), Fault.UPSTREAM_UNREACHABLE),  # it was asked, and is not there
    ):
        session = FakeSession()
        forwarder = Forwarder(board, Accounts(board), routes=routes)
        forwarder.opened(session, 1, "POST", "/v2/generate", [], "m", ended=True)
        await session.over.wait()
        assert session.log == [("reset", 1, fault)]
    await upstream.aclose()


@pytest.mark.parametrize(
    ("method", "target", "model", "fault"),
    [
        ("GET", "/slots", "m", Fault.ROUTE_REFUSED),
        ("DELETE", "/models", "m", Fault.ROUTE_REFUSED),
        ("POST", "/v1/../slots", "m", Fault.ROUTE_REFUSED),
        ("POST", "/v1/messages", "m", Fault.ROUTE_REFUSED),
        ("POST", "/api/pull", "m", Fault.ROUTE_REFUSED),
        ("DELETE", "/api/delete", "m", Fault.ROUTE_REFUSED),
        ("POST", "/api/v1/models/download", "m", Fault.ROUTE_REFUSED),
        ("POST", "/api/v1/models/load", "m", Fault.ROUTE_REFUSED),
        ("POST", CHAT, "other", Fault.MODEL_NOT_FOUND),
        ("POST", CHAT + "?a b", "m", Fault.PROTOCOL),
        ("POST", CHAT + "?\r\nx: y", "m", Fault.PROTOCOL),
    ],
)
async def test_what_a_hostile_relay_asks_is_refused(
    method: str, target: str, model: str, fault: Fault
) -> None:
    async with forwarding(answering(ok(b""))) as (forwarder, _, raw):
        session = FakeSession()
        forwarder.opened(session, 1, method, target, [], model, ended=True)
        assert session.log == [("reset", 1, fault)]
        assert raw.connections == 0


async def test_streams_over_the_bound_are_refused() -> None:
    async def hang(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await r.read()

    async with forwarding(hang, max_streams=1) as (forwarder, board, _):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        assert board.status().models[0].slots_busy == 1
        forwarder.opened(session, 3, "POST", CHAT, [], "m", ended=True)
        assert session.log == [("reset", 3, Fault.OVERLOADED)]
        forwarder.lost(session)


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_a_caller_that_leaves_closes_the_upstreams_socket(how: str) -> None:
    async def endless(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(CHUNKED + b"1\r\na\r\n")
        await r.read()

    async with forwarding(endless) as (forwarder, _, raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.some.wait()
        if how == "reset":
            forwarder.reset(session, 1)
        else:
            forwarder.lost(session)
        await raw.client_left.wait()
        assert not session.over.is_set()


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"zz\r\n"]
)
async def test_an_upstream_that_breaks_resets_the_stream(answer: bytes) -> None:
    async with forwarding(answering(answer, close=True)) as (forwarder, _, _raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        assert session.log[-1] == ("reset", 1, Fault.UPSTREAM_BROKE)


async def test_a_large_upload_streams_and_its_credit_follows_the_socket() -> None:
    gate = asyncio.Event()
    seen = 0

    async def slow(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        nonlocal seen
        await gate.wait()
        head, body = await read_request(r)
        assert b"transfer-encoding: chunked" in head
        seen = len(body)
        w.write(ok(b""))

    async with forwarding(slow) as (forwarder, _, _raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=False)
        sent = 0
        while sent - session.consumed < 4 * HOLD_BYTES:  # the window of a session
            forwarder.data(session, 1, b"x" * 16_384)
            sent += 16_384
            await asyncio.sleep(0)
        gate.set()
        forwarder.ended(session, 1)
        await session.over.wait()
        assert seen == sent == session.consumed


async def test_an_announced_length_is_kept_and_a_lie_about_it_resets() -> None:
    seen: list[bytes] = []
    async with forwarding(answering(ok(b""), seen=seen)) as (forwarder, _, _raw):
        session, length = FakeSession(), [(b"content-length", b"3")]
        forwarder.opened(session, 1, "POST", CHAT, length, "m", ended=False)
        forwarder.data(session, 1, b"abc")
        forwarder.ended(session, 1)
        await session.over.wait()
        assert seen[0].endswith(b"content-length: 3\r\n\r\nabc")
        forwarder.opened(session, 3, "POST", CHAT, length, "m", ended=False)
        forwarder.data(session, 3, b"four")
        assert session.log[-1] == ("reset", 3, Fault.PROTOCOL)


async def test_a_slow_session_pauses_its_upstream_and_goes_on() -> None:
    gate = asyncio.Event()

    async def two(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await read_request(r)
        w.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await gate.wait()
        w.write(b"b")
        await r.read()

    async with forwarding(two) as (forwarder, _, _raw):
        session = FakeSession()
        session.room = False
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.some.wait()
        gate.set()
        await asyncio.sleep(0.02)
        assert session.payload == b"a"
        session.room = True
        forwarder.writable(session, 1)
        await session.over.wait()
        assert session.payload == b"ab"


async def test_llama_cpps_timings_become_the_models_speed() -> None:
    tail = b'data: {"timings":{"prompt_per_second":800.0,"predicted_per_second":41.26}}\n\n'
    async with forwarding(answering(ok(tail + b"data: [DONE]\n\n"))) as (forwarder, board, _raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        model = board.status().models[0]
        assert (model.prefill_tps, model.decode_tps) == (800.0, 41.3)


async def test_the_speed_of_an_answer_of_one_token_is_not_believed() -> None:
    tail = (
        b'data: {"timings":{"prompt_n":1,"prompt_per_second":9.5,'
        b'"predicted_n":1,"predicted_per_second":1000000.0}}\n\n'
    )
    async with forwarding(answering(ok(tail + b"data: [DONE]\n\n"))) as (forwarder, board, _raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        model = board.status().models[0]
        assert (model.prefill_tps, model.decode_tps) == (None, None)


@pytest.mark.e2e
async def test_a_reset_in_mid_stream_frees_the_real_llama_servers_slot(tmp_path: Path) -> None:
    with llama_server(tiny_gguf(tmp_path), tmp_path, key="k3y") as server:
        upstream = await upstream_at(server.url, "k3y")
        assert upstream.kind == "llama-server"
        board = Board()
        board.add(upstream)
        board.probed(upstream, await upstream.probe())
        status = board.status().models[0]
        assert (status.id, status.slots_total, status.context_tokens) == ("tiny", 2, 2048)
        forwarder, session = Forwarder(board, Accounts(board)), FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "tiny", ended=False)
        body = (
            b'{"model":"tiny","stream":true,"max_tokens":1900,"ignore_eos":true,'
            b'"messages":[{"role":"user","content":"hi"}]}'
        )
        forwarder.data(session, 1, body)
        forwarder.ended(session, 1)
        await session.some.wait()
        forwarder.reset(session, 1)
        async with asyncio.timeout(30):
            while await asyncio.to_thread(server.busy_slots):
                pass
        written = (await asyncio.to_thread(server.metrics))["llamacpp:tokens_predicted_total"]
        assert written < 1900  # it did not go on to its end
        assert not session.over.is_set()
        assert forwarder.active_streams == 0
        await upstream.aclose()


async def test_each_stream_is_a_line_that_names_the_relays_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forged = b"req_1 status=500 \xff"
    headers = [(b"x-request-id", forged), (b"content-type", b"application/json")]
    async with forwarding(
        answering(ok(b"yes", b"Connection: close"), close=True), answering(CHUNKED, close=True)
    ) as (
        forwarder,
        _,
        _raw,
    ):
        with caplog.at_level("INFO", "wai.access"):
            for stream in (1, 2):
                session = FakeSession()
                forwarder.opened(session, stream, "POST", CHAT, headers, "m", ended=True)
                await session.over.wait()
            forwarder.close()
    (record,) = caplog.records
    lines: list[dict[str, object]] = [entry.fields() for _, entry in record.__dict__["entries"]]
    assert [(line["status"], line["fault"]) for line in lines] == [
        (200, ""),
        (200, "upstream_broke"),
    ]
    assert {line["request_id"] for line in lines} == {r"req_1\x20status=500\x20\xff"}


async def test_a_reset_that_crosses_the_answers_end_is_told_what_it_took() -> None:
    timings = b'{"timings":{"cache_n":3,"prompt_n":20,"predicted_n":7}}'
    async with forwarding(answering(ok(timings))) as (forwarder, _, _raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        forwarder.reset(session, 1)
        told = {"stream": 1, "prompt": 23, "cached": 3, "completion": 7, "exact": True}
        assert session.log[-1] == ("event", "spent", told)
        forwarder.reset(session, 1)
        forwarder.lost(session)
        assert len([entry for entry in session.log if entry[0] == "event"]) == 1


async def test_the_relay_is_told_of_a_load_before_the_answer_begins() -> None:
    class Loading(OpenAIUpstream):
        def lease(
            self,
            ready: Ready,
            failed: Callable[[WaiError], None],
            told: Callable[[Waited], None] = lambda waited: None,
        ) -> Callable[[], None]:
            told(Waited(8.0, 1.2, ("other",)))
            return super().lease(ready, failed)

    async with raw_upstream(answering(ok(b"yes"))) as raw:
        upstream = Loading(raw.url)
        board = Board()
        board.add(upstream)
        board.probed(upstream, Probe((upstream.model("m"),)))
        forwarder = Forwarder(board, Accounts(board))
        session = FakeSession()
        forwarder.opened(session, 7, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        await upstream.aclose()
    told = {"stream": 7, "load_ms": 8000, "room_ms": 1200, "made_room": ["other"]}
    assert session.log[0] == ("event", "loaded", told)
    assert session.log[1][0] == "headers"


async def test_a_request_that_was_not_sent_yet_took_nothing() -> None:
    async with forwarding(answering(ok(b""))) as (forwarder, _, _raw):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=False)
        forwarder.reset(session, 1)
        told = {"stream": 1, "prompt": 0, "cached": 0, "completion": 0, "exact": True}
        assert session.log == [("event", "spent", told)]


NOT_FOR_CALLERS = b"""Location: https://elsewhere.example/
X-Accel-Redirect: /internal/
X-Sendfile: /etc/passwd
Clear-Site-Data: "*"
Refresh: 0; url=https://elsewhere.example/
Set-Cookie: a=b
X-RateLimit-Remaining-Requests: 0
Access-Control-Allow-Origin: *
Access-Control-Max-Age: 9
Alt-Svc: h3=":443"
Strict-Transport-Security: max-age=1
Link: <https://elsewhere.example/>; rel=preload
WWW-Authenticate: Basic
Proxy-Authenticate: Basic
Content-Location: https://elsewhere.example/
X-WAI-Node: other
Server: x""".split(b"\n")


async def test_only_harmless_headers_of_an_answer_leave_the_node() -> None:
    harmless = [b"Content-Type: application/json", b"Retry-After: 3", b"OpenAI-Processing-MS: 7"]
    async with forwarding(answering(ok(b"{}", *NOT_FOR_CALLERS, *harmless))) as (forwarder, *_):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        assert session.log[0] == (
            "headers",
            1,
            200,
            [
                (b"content-type", b"application/json"),
                (b"retry-after", b"3"),
                (b"openai-processing-ms", b"7"),
                (b"content-length", b"2"),
            ],
        )


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308, 399])
async def test_a_redirect_of_the_model_server_is_its_fault_and_goes_no_further(status: int) -> None:
    answer = (
        b"HTTP/1.1 %d x\r\nLocation: https://elsewhere/\r\nContent-Length: 2\r\n\r\n{}" % status
    )
    async with forwarding(answering(answer)) as (forwarder, *_):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        assert session.log == [("reset", 1, Fault.UPSTREAM_BROKE)]


async def test_an_answers_head_that_fits_no_frame_resets_its_stream() -> None:
    class Strict(FakeSession):
        def send_headers(self, stream_id: int, status: int, headers: Headers) -> None:
            raise LocalProtocolError("no")

    async with forwarding(answering(ok(b"{}"))) as (forwarder, *_):
        session = Strict()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=True)
        await session.over.wait()
        assert session.log == [("reset", 1, Fault.UPSTREAM_BROKE)]


async def test_a_stream_that_the_node_itself_fails_on_leaves_nothing_behind() -> None:
    async with forwarding(answering(ok(b"{}"))) as (forwarder, *_):
        session = FakeSession()
        forwarder.opened(session, 1, "POST", CHAT, [], "m", ended=False)
        forwarder.failed(session, 1)
        forwarder.failed(session, 1)
        assert forwarder.active_streams == 0


def websocket(forwarder: Forwarder, session: FakeSession, headers: Headers | None = None) -> None:
    target = "/v1/realtime?model=m"
    forwarder.opened(session, 1, "GET", target, headers or [], "m", ended=False)


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *more: bytes) -> bytes:
    """Agree to a WebSocket; returns the head that asked for it."""
    head = await read_head(reader)
    key = head.lower().partition(b"sec-websocket-key: ")[2].partition(b"\r")[0]
    key = head[head.lower().index(key) :][: len(key)]
    lines = [b"Upgrade: websocket", b"Connection: Upgrade", *more]
    lines.append(b"Sec-WebSocket-Accept: " + accept_token(key))
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")
    return head


async def test_a_websockets_frames_pass_as_they_are_both_ways() -> None:
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await accept(reader, writer, b"Sec-WebSocket-Protocol: realtime"))
        while data := await reader.read(1000):
            writer.write(b"[" + data + b"]")
            if data == b"bye":
                return

    async with forwarding(script) as (forwarder, *_):
        session = FakeSession()
        offered = (b"sec-websocket-protocol", b"realtime, other")
        websocket(forwarder, session, [offered, (b"sec-websocket-key", b"of the caller")])
        await session.headed.wait()
        assert session.log == [("headers", 1, 200, [(b"sec-websocket-protocol", b"realtime")])]
        for said in (b"\x81\x00", b"bye"):
            session.some.clear()
            forwarder.data(session, 1, said)
            await session.some.wait()
        await session.over.wait()
    assert session.payload == b"[\x81\x00][bye]"
    assert session.log[-1] == ("end", 1)
    assert session.consumed == 5
    head = heads[0].lower()
    assert head.startswith(b"get /v1/realtime?model=m http/1.1\r\n")
    assert b"sec-websocket-protocol: realtime, other\r\n" in head
    assert b"of the caller" not in head
    assert b"extensions" not in head
    assert b"authorization: bearer node-secret" in head


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ok(b"<html>", b"Content-Type: text/html"), ("reset", 1, Fault.ROUTE_REFUSED)),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            ("headers", 1, 403, [(b"content-length", b"0")]),
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: wrong\r\n\r\n",
            ("reset", 1, Fault.UPSTREAM_BROKE),
        ),
    ],
    ids=["200", "403", "unproven"],
)
async def test_a_server_that_does_not_agree_is_no_websocket(
    answer: bytes, told: tuple[object, ...]
) -> None:
    async with forwarding(answering(answer)) as (forwarder, *_):
        session = FakeSession()
        websocket(forwarder, session)
        await session.over.wait()
        if told[0] == "headers":
            told = (*told[:3], [])  # a length of none is not told
        assert session.log[0] == told


async def test_a_caller_that_leaves_closes_the_servers_websocket() -> None:
    gone = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await reader.read()
        gone.set()

    async with forwarding(script) as (forwarder, *_):
        session = FakeSession()
        websocket(forwarder, session)
        await session.headed.wait()
        forwarder.reset(session, 1)
        await gone.wait()


async def test_where_several_relays_send_a_stream_too_many_is_turned_away() -> None:
    async def hang(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        await r.read()

    async with forwarding(hang, max_streams=64) as (forwarder, board, _):
        (upstream,) = board.upstreams
        here, there = FakeSession(), FakeSession()
        unknown = iter(range(1, 99, 2))
        forwarder.judges_slots = True
        for _ in range(9):  # nobody tells how many slots it has
            forwarder.opened(here, next(unknown), "POST", CHAT, [], "m", ended=True)
        assert not here.log
        forwarder.lost(here)
        told = replace(upstream.model("m"), slots_total=4)
        board.probed(upstream, Probe((told,)))
        for number in (1, 3):
            forwarder.opened(here, number, "POST", CHAT, [], "m", ended=True)
            forwarder.opened(there, number, "POST", CHAT, [], "m", ended=True)
        forwarder.opened(there, 5, "POST", CHAT, [], "m", ended=True)  # the line
        assert not there.log
        forwarder.opened(there, 7, "POST", CHAT, [], "m", ended=True)
        assert there.log == [("reset", 7, Fault.NODE_FULL)]
        forwarder.judges_slots = False
        forwarder.opened(there, 9, "POST", CHAT, [], "m", ended=True)
        assert len(there.log) == 1
        forwarder.lost(here)
        forwarder.lost(there)
