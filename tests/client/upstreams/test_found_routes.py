"""What a server is found to have, against servers that answer as the real ones do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from wai_node.config import UpstreamConfig
from wai_node.upstreams import Board, Probe, Watch
from wai_node.upstreams import found_routes as found_routes_module
from wai_node.upstreams.found_routes import DESCRIPTION_PATH, EMPTY, NO_JSON, Way, find_routes
from wai_node.upstreams.openai import OpenAIUpstream
from wai_node.upstreams.watch import _Polling
from wai_protocol.errors import Fault, RequestError, TransportError
from wai_protocol.status import NodeStatus
from wai_protocol.surface import ROUTES, RouteTable, extra_route

pytestmark = pytest.mark.anyio

Answer = Callable[[str, str, bytes], tuple[int, bytes]]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def asked_by(
    answer: Answer, log: list[tuple[str, str, bytes]] | None = None
) -> found_routes_module.Ask:
    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if log is not None:
            log.append((method, path, body))
        return answer(method, path, body)

    return ask


def having(*paths: str, missing: tuple[int, bytes] = (404, b"{}")) -> Answer:
    """A server that looks at the path first, and then finds the body wrong."""

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        del method
        if path not in paths:
            return missing
        return (400, b'{"error":"bad json"}') if body in (NO_JSON, EMPTY) else (200, b"{}")

    return answer


async def found(answer: Answer, *apis: str, way: Way = Way.BY_BODY) -> set[str] | None:
    routes = await find_routes(asked_by(answer), ROUTES, apis or ("openai",), way)
    return None if routes is None else set(routes)


async def test_a_route_is_there_if_a_body_that_is_no_json_is_what_is_wrong() -> None:
    log: list[tuple[str, str, bytes]] = []
    answer = having(CHAT, "/v1/messages", "/infill", "/props")
    routes = await find_routes(asked_by(answer, log), ROUTES, ("openai",), Way.BY_BODY)
    assert set(routes or ()) == {
        *(CHAT, TEXT, "/v1/messages", "/infill", "/props"),
    }
    assert all(body in (NO_JSON, b"") for _, _, body in log), "no model may see a request"
    assert {method for method, _, _ in log} <= {"GET", "POST"}, "nothing that deletes"
    assert not any("{id}" in path for _, path, _ in log)
    assert CHAT not in {path for _, path, _ in log}, "whatever serves a model has it"


async def test_a_route_that_is_there_and_not_for_this_model_is_missing() -> None:
    """llama-server answers 501 to embeddings unless it was started for them."""

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path in ("/v1/embeddings", "/v1/rerank"):
            return 501, b'{"error":{"code":501,"message":"not supported"}}'
        return having(CHAT)(method, path, body)

    assert await found(answer) == {CHAT, TEXT}


async def test_a_server_that_describes_itself_is_believed_and_not_bothered() -> None:
    paths: dict[str, dict[str, object]] = {
        CHAT: {"post": {}},
        "/v1/responses": {"post": {}},
        "/v1/responses/{response_id}": {"get": {}},
        "/v1/messages": {"post": {}},
        "/v1/models": {"get": {}},
        "/v1/embeddings": {"get": {}},  # by another method
    }
    log: list[tuple[str, str, bytes]] = []

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        del method, body
        return (
            (200, json.dumps({"paths": paths}).encode()) if path == DESCRIPTION_PATH else (404, b"")
        )

    routes = await find_routes(asked_by(answer, log), ROUTES, ("openai",), Way.BY_BODY)
    assert set(routes or ()) == {
        *(CHAT, "/v1/responses", "/v1/responses/{id}", "/v1/messages"),
    }
    assert len(log) == 1


@pytest.mark.parametrize("page", [b"<html>", b"[]", b'{"paths":[]}', b'{"paths":{"/":{"get":{}}}}'])
async def test_a_description_of_something_else_is_not_believed(page: bytes) -> None:
    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return (200, page) if path == DESCRIPTION_PATH else having(CHAT)(method, path, body)

    assert await found(answer) == {CHAT, TEXT}


async def test_a_server_that_reads_the_body_before_the_path_is_asked_with_an_empty_object() -> None:
    """LM Studio: 400 to what is no JSON, whatever the path, and 200 to an unknown path."""
    unknown = (200, b'{"error":"Unexpected endpoint or method. (POST /x). Returning 200 anyway"}')

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if body == NO_JSON:
            return 400, b"invalid json"
        return having(CHAT, "/v1/messages", "/completion", missing=unknown)(method, path, body)

    assert await found(answer) == {CHAT, TEXT, "/v1/messages"}, (
        "an empty object may be a whole request"
    )


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 405, 500])
async def test_a_server_that_answers_everything_alike_does_not_let_us_know(
    status: int, way: Way
) -> None:
    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        del method, path, body
        return status, b"{}"

    assert await found(answer, "ollama", way=way) is None


def by_framework(*paths: str) -> Answer:
    """What FastAPI, gin and aiohttp answer to GET: 405 to paths that are there by POST only."""
    return lambda method, path, body: (405 if path in paths else 404, b"")


async def test_most_servers_are_asked_by_get_alone() -> None:
    log: list[tuple[str, str, bytes]] = []
    answer = by_framework(CHAT, "/v1/messages", "/api/chat")
    routes = await find_routes(asked_by(answer, log), ROUTES, ("openai", "ollama"))
    assert set(routes or ()) == {CHAT, "/v1/messages", "/api/chat"}
    assert {(method, body) for method, _, body in log} == {("GET", b"")}


async def test_an_answer_to_get_that_says_nothing_leaves_what_the_kind_has() -> None:
    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path in ("/v1/messages", "/v1/rerank"):
            return 500, b""
        return by_framework(CHAT)(method, path, body)

    assert await found(answer, "openai", way=Way.BY_METHOD) == {CHAT, "/v1/rerank"}


@pytest.mark.parametrize(("way", "asked"), [(Way.BY_METHOD, 1), (Way.BY_BODY, 0)])
async def test_a_websocket_is_there_if_it_can_be_opened(way: Way, asked: int) -> None:
    opened: list[str] = []

    async def accepts(path: str) -> bool:
        opened.append(path)
        return True

    answer = by_framework(CHAT) if way is Way.BY_METHOD else having(CHAT)
    routes = await find_routes(asked_by(answer), ROUTES, ("openai",), way, accepts)
    assert opened == ["/v1/realtime"] * asked
    assert ("/v1/realtime" in (routes or ())) is bool(asked)


async def test_a_server_that_hangs_up_on_a_websocket_has_none() -> None:
    async def hangs_up(path: str) -> bool:
        raise TransportError(f"it hung up at {path}", Fault.UPSTREAM_BROKE)

    answer = asked_by(by_framework(CHAT))
    routes = await find_routes(answer, ROUTES, ("openai",), Way.BY_METHOD, hangs_up)
    assert CHAT in (routes or ())
    assert "/v1/realtime" not in (routes or ())


async def test_a_server_without_any_route_for_a_model_means_something_else() -> None:
    """A gateway that answers 404 for "no such model", for example."""
    page = by_framework("/props")
    assert await found(page, "ollama", way=Way.BY_METHOD) is None


async def test_a_server_that_hangs_up_on_a_bad_body_has_what_its_kind_has() -> None:
    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if path in ("/v1/responses", "/v1/messages"):
            raise TransportError("it closed the connection", Fault.UPSTREAM_BROKE)
        return 404, b""

    assert await found(answer, "openai") == {CHAT, TEXT, "/v1/responses"}


class Server(OpenAIUpstream):
    """Serves `m`, and tells what `has` holds."""

    def __init__(self, has: frozenset[str] | None) -> None:
        super().__init__("http://127.0.0.1:1")
        self.has = has
        self.asked = 0
        self.up, self.asleep, self.process = True, False, ""

    async def probe(self) -> Probe:
        if not self.up:
            raise TransportError("refused", Fault.UPSTREAM_UNREACHABLE)
        return Probe(self.models([self.model("m")]), asleep=self.asleep, process=self.process)

    async def find_routes(self, routes: object) -> frozenset[str] | None:
        self.asked += 1
        return self.has


def watch_over(server: Server, clock: list[float]) -> tuple[Watch, Board]:
    board = Board()
    return Watch(board, lambda status: None, given=[server], clock=lambda: clock[0]), board


async def polled(watch: Watch, server: Server) -> None:
    await watch._poll(server)


async def test_it_is_asked_again_after_a_restart_and_not_at_each_poll() -> None:
    server, clock = Server(frozenset({CHAT})), [0.0]
    watch, board = watch_over(server, clock)
    watch._polls[server] = _Polling()
    for _ in range(3):
        await polled(watch, server)
    assert server.asked == 1
    (model,) = board.status().models
    assert (model.apis, set(model.routes or ())) == (("openai",), {CHAT})

    server.up = False
    await polled(watch, server)
    server.up, server.has = True, frozenset({CHAT, "/v1/messages"})
    await polled(watch, server)
    (model,) = board.status().models
    assert (server.asked, model.apis) == (2, ("openai", "anthropic"))

    server.process = "another"  # a context swap
    await polled(watch, server)
    assert server.asked == 3
    clock[0] += 4000.0
    await polled(watch, server)
    assert server.asked == 4
    await server.aclose()


async def test_a_model_that_sleeps_is_not_woken_to_be_asked() -> None:
    server = Server(frozenset({CHAT}))
    watch, _ = watch_over(server, [0.0])
    watch._polls[server] = _Polling()
    server.asleep = True
    await polled(watch, server)
    assert server.asked == 0
    server.asleep = False
    await polled(watch, server)
    assert server.asked == 1
    await server.aclose()


def test_the_board_chooses_by_route() -> None:
    board = Board()
    plain, native = Server(frozenset()), Server(frozenset())
    for server, has in ((plain, {CHAT}), (native, {CHAT, "/v1/messages"})):
        board.add(server)
        board.probed(server, Probe(server.models([server.model("m")])))
        board.found(server, frozenset(has))
    messages = ROUTES.find("POST", "/v1/messages")
    assert messages is not None
    assert board.choose("m", messages) is native
    rerank = ROUTES.find("POST", "/v1/rerank")
    assert rerank is not None
    assert board.choose("m", rerank) is None


def test_routes_travel_in_status_once_for_each_upstream() -> None:
    board = Board(RouteTable(ROUTES))
    server = Server(frozenset())
    board.add(server)
    board.probed(server, Probe(server.models([server.model(f"m{i}") for i in range(3)])))
    board.found(server, frozenset({CHAT}))
    wire = board.status().to_wire()
    assert wire["routes"] == {server.name: [CHAT]}
    assert all("routes" not in model for model in wire["models"])
    read = NodeStatus.from_wire(wire).models
    assert set(read[0].routes or ()) == {CHAT}
    assert read[0].routes is read[2].routes, "512 models share one set"


@pytest.mark.parametrize("has", [frozenset({CHAT}), None])
def test_what_an_owner_adds_holds_for_that_server_only(has: frozenset[str] | None) -> None:
    extra = extra_route("POST /custom/*")
    board = Board(ROUTES.extended([extra]))
    plain, special = Server(has), Server(has)
    special.extra = (extra,)
    for server in (plain, special):
        board.add(server)
        board.probed(server, Probe(server.models([server.model("m")])))
        board.found(server, has)
    found = board.routes.find("POST", "/custom/a")
    assert found is extra
    assert board.choose("m", found) is special
    chat = board.routes.find("POST", CHAT)
    assert chat is not None
    assert board.choose("m", chat) in (plain, special)


@pytest.mark.parametrize(
    "text",
    [
        "POST /api/pull",
        "DELETE /api/delete",
        "POST /api/*",
        "POST /api/v1/models/*",
        "POST /{id}/load",
    ],
)
def test_an_owner_can_not_let_callers_change_which_models_a_server_has(text: str) -> None:
    with pytest.raises(RequestError, match="which models a server has"):
        UpstreamConfig("http://127.0.0.1:1", extra=(text,))


@pytest.mark.parametrize("text", ["", "POST", "POST custom", "post /x", "POST /*", "POST /a/../b"])
def test_an_extra_route_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        UpstreamConfig("http://127.0.0.1:1", extra=(text,))
