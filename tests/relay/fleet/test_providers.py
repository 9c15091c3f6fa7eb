"""Cloud providers through the whole gateway, over real TLS: when they serve, what they learn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.frames import Frame, Opcode

from tests.harness.exchanges import FakeExchange, make_request
from tests.harness.fleets import JSON, FakeFleet, FakeNode, FakeStream
from tests.harness.openai_service import KEY, MODEL, OpenAiService, openai_service
from tests.harness.realtime_server import realtime_server
from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, RequestError, StoreError
from wai_protocol.status import ModelStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import RequestRecord
from wai_relay.fleet.provider_config import ProviderConfig, ProviderModel
from wai_relay.fleet.providers import ProvidedFleet, Provider
from wai_relay.gateway.dispatch import ScheduledDispatcher
from wai_relay.gateway.gateway import Gateway

pytestmark = pytest.mark.anyio

OURS = ModelStatus("qwen", "llama-server@a", slots_total=1, context_tokens=8192)
CHAT = {"model": "qwen", "messages": [{"role": "user", "content": "hi"}]}
REPLY = b'{"choices":[{}],"usage":{"prompt_tokens":9,"completion_tokens":2}}'
PRICED = ProviderModel("qwen", MODEL, input_price=1.0, output_price=10.0, cached_price=0.5)


@dataclass
class Rig:
    gateway: Gateway
    provider: Provider
    records: list[RequestRecord]

    async def ask(self, headers: Headers | None = None, **fields: Any) -> FakeExchange:
        known = [(b"authorization", b"Bearer wai_sk_test"), *(headers or [])]
        exchange = FakeExchange(make_request(headers=known), [json.dumps(CHAT | fields).encode()])
        with anyio.fail_after(10):
            await self.gateway.handle(exchange)
        assert exchange.over
        return exchange


@pytest.fixture
def service(tmp_path: Path) -> Iterator[OpenAiService]:
    with openai_service(tmp_path) as running:
        yield running


@asynccontextmanager
async def rig(
    service: OpenAiService, *nodes: FakeNode, key: str = KEY, after_s: float = 10.0, **limits: Any
) -> AsyncIterator[Rig]:
    config = ProviderConfig("cloud", service.base_url, (PRICED,), ca_file=service.ca_file)
    provider = Provider(config, key)
    fleet = ProvidedFleet(FakeFleet(*nodes), [provider])
    records: list[RequestRecord] = []

    class Keep:
        def finish(self, record: RequestRecord) -> None:
            records.append(record)

    class OneKey:
        def authenticate(self, headers: Headers) -> ApiKey:
            return ApiKey("key_1", "app", b"", "wai_sk_", KeyLimits(**limits), 1, 0.0)

    dispatcher = ScheduledDispatcher(fleet, overflow_after_s=after_s)
    gateway = Gateway(OneKey(), fleet, dispatcher, Keep())
    try:
        yield Rig(gateway, provider, records)
    finally:
        await fleet.aclose()
        assert dispatcher.in_flight == 0


def served(stream: FakeStream) -> None:
    stream.answer(200, JSON, REPLY)


async def test_a_node_that_can_serve_keeps_the_request(service: OpenAiService) -> None:
    async with rig(service, FakeNode("box", OURS, script=served)) as r:
        exchange = await r.ask()
    assert (exchange.header(b"x-wai-node"), service.seen) == (b"box", [])


async def test_no_node_means_the_provider_and_it_is_said_and_priced(service: OpenAiService) -> None:
    async with rig(service, FakeNode("box", OURS, ready=False)) as r:
        exchange = await r.ask()
    assert exchange.status == 200
    assert json.loads(exchange.body)["choices"][0]["message"]["content"] == "From the cloud"
    assert exchange.header(b"x-wai-node") == b"provider:cloud"
    assert exchange.header(b"x-wai-reason") == b"failover"
    (record,) = r.records
    assert (record.served_model, record.fallback, record.tokens.exact) == (MODEL, True, True)
    assert record.cost == pytest.approx((600 * 1.0 + 400 * 0.5 + 200 * 10.0) / 1e6)


async def test_a_stream_is_counted_and_the_usage_that_was_not_asked_for_is_stripped(
    service: OpenAiService,
) -> None:
    async with rig(service) as r:
        exchange = await r.ask(stream=True)
    assert b"From" in exchange.body
    assert exchange.body.endswith(b"data: [DONE]\n\n")
    assert b"prompt_tokens" not in exchange.body
    tokens = r.records[0].tokens
    assert (tokens.prompt, tokens.cached, tokens.completion, tokens.exact) == (1000, 400, 200, True)


async def test_the_provider_learns_nothing_of_the_caller_nor_the_caller_of_our_account(
    service: OpenAiService,
) -> None:
    secret = [(b"x-api-key", b"wai_sk_test"), (b"cookie", b"a=b"), (b"user-agent", b"app/1")]
    secret += [(b"openai-organization", b"org-caller"), (b"content-type", b"application/json")]
    async with rig(service) as r:
        exchange = await r.ask(secret)
    (path, headers, body) = service.seen[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == MODEL
    assert set(headers) == {
        *("host", "content-type", "user-agent", "authorization", "content-length")
    }
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["user-agent"].startswith("wai/")
    names = {name for name, _ in exchange.headers}
    assert not names & {b"openai-organization", b"x-ratelimit-limit-requests", b"x-request-id"}
    assert not names & {b"set-cookie", b"server"}


@pytest.mark.parametrize("size", [100_000, 2_000_000])
async def test_a_long_body_goes_with_its_length(service: OpenAiService, size: int) -> None:
    async with rig(service) as r:
        exchange = await r.ask(messages=[{"role": "user", "content": "x" * size}])
    assert exchange.status == 200
    (_, headers, body) = service.seen[0]
    assert int(headers["content-length"]) > size
    assert len(body["messages"][0]["content"]) == size


async def test_local_only_never_leaves(service: OpenAiService) -> None:
    async with rig(service, FakeNode("box", OURS, ready=False), local_only=True) as r:
        exchange = await r.ask()
        pinned = await r.ask([(b"x-wai-node", b"provider:cloud")])
    assert (exchange.status, pinned.status, service.seen) == (503, 403, [])


async def test_busy_nodes_get_their_time_and_then_the_provider_serves(
    service: OpenAiService,
) -> None:
    box = FakeNode("box", OURS)  # it never answers
    async with rig(service, box, after_s=0.3) as r, anyio.create_task_group() as tasks:
        tasks.start_soon(r.ask)
        while not box.streams:
            await anyio.lowlevel.checkpoint()
        exchange = await r.ask()
        tasks.cancel_scope.cancel()
    assert exchange.header(b"x-wai-node") == b"provider:cloud"
    assert exchange.header(b"x-wai-reason") == b"overflow"


async def test_a_wrong_key_of_ours_is_not_the_callers_fault(service: OpenAiService) -> None:
    async with rig(service, key="sk-wrong") as r:
        exchange = await r.ask()
    assert exchange.status == 502
    assert "provider:cloud does not accept" in json.loads(exchange.body)["error"]["message"]


async def test_a_provider_that_limits_us_rests_as_long_as_it_says(service: OpenAiService) -> None:
    service.limited_s = 1
    async with rig(service) as r:
        exchange = await r.ask()
        assert not r.provider.ready
        service.limited_s = None
        again = await r.ask()  # waits for it, as for a node that just went away
    assert (exchange.status, exchange.header(b"retry-after")) == (503, b"1")
    assert b"org-secret" not in exchange.body
    assert (again.status, len(service.seen)) == (200, 2)


async def test_a_node_that_is_broken_is_followed_by_the_provider(service: OpenAiService) -> None:
    async with rig(
        service, FakeNode("box", OURS, script=lambda s: s.answer(503, JSON, b"{}"))
    ) as r:
        exchange = await r.ask()
    assert exchange.header(b"x-wai-node") == b"provider:cloud"
    assert exchange.header(b"x-wai-attempts") == b"2"


async def test_a_provider_whose_certificate_is_not_good_gets_nothing(
    service: OpenAiService, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with openai_service(tmp_path / "other") as other:
        service.ca_file = other.ca_file
        async with rig(service) as r:
            exchange = await r.ask()
    assert (exchange.status, service.seen) == (502, [])


def test_keys_come_from_the_environment_or_a_file_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    url = "https://api.example/v1"
    assert ProviderConfig("a", url, (), key_file=file).read_key() == "sk-file"
    assert ProviderConfig("a", url, (), key_env="K").read_key({"K": "sk-env"}) == "sk-env"
    assert ProviderConfig("a", url, ()).read_key({}) == ""
    file.write_text("sk two\x00words")
    for config, error in (
        (ProviderConfig("a", url, (), key_env="K"), RequestError),
        (ProviderConfig("a", url, (), key_file=file), RequestError),
        (ProviderConfig("a", url, (), key_file=tmp_path / "none"), StoreError),
    ):
        with pytest.raises(error) as caught:
            config.read_key({})
        assert "sk two" not in str(caught.value)


async def test_a_websocket_reaches_a_provider_with_its_key_and_not_the_callers() -> None:
    with realtime_server(MODEL, KEY) as server:
        provider = Provider(ProviderConfig("cloud", server.url + "/v1", (PRICED,)), KEY)
        heard: list[bytes] = []
        told: asyncio.Queue[tuple[int, Headers]] = asyncio.Queue()
        greeted, over = asyncio.Event(), asyncio.Event()

        class Heard:
            def on_headers(self, status: int, headers: Headers) -> None:
                told.put_nowait((status, headers))

            def on_data(self, data: bytes) -> None:
                heard.append(data)
                greeted.set()

            def on_end(self) -> None:
                over.set()

            def on_reset(self, fault: Fault, reason: str) -> None:
                raise AssertionError(reason)

        headers = [(b"sec-websocket-protocol", b"realtime"), (b"x-api-key", b"wai_sk_test")]
        target = f"/v1/realtime?model={MODEL}"
        stream = provider.open("GET", target, headers, MODEL, Heard(), end=False)
        assert await told.get() == (200, [])
        await greeted.wait()
        stream.write(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
        await over.wait()
        await provider.aclose()
    assert b"session.created" in b"".join(heard)
    head = server.heads[0].headers
    assert head["sec-websocket-protocol"] == "realtime"
    assert head["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in head
