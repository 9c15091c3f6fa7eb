"""Capture and replay over the admin API: who did what is written down, and nothing stays."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.harness.exchanges import FakeExchange, make_request
from tests.relay.conftest import Clock
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.http.exchange import Exchange
from wai_relay.storage import SqliteStore

from .fakes import Api, make_api, make_node

pytestmark = pytest.mark.anyio

HOSTILE: Final = "<script>alert(1)</script>\x1b[2J"
PROMPT: Final = json.dumps({"model": "m", "messages": HOSTILE + " wai_sk_0123456789abcdef"})


async def key_of(api: Api, name: str = "app") -> str:
    _, made = await api.call("POST", "/keys", {"name": name})
    return str(made["id"])


async def captured(api: Api, key_id: str, name: str = "req_1", prompt: str = PROMPT) -> None:
    """A request of `key_id` that is over."""
    inner = FakeExchange(make_request(), [prompt.encode()])
    record = RequestRecord(name, 1.0, "POST", "/v1/chat/completions", key_id, model="m", node="box")
    exchange = api.context.captures.watched(inner, record, key_id)
    while await exchange.read():
        pass
    exchange.start(200, [])
    exchange.write(b"answer \xff")
    record.status = 200
    api.context.explanations.remember(record)


async def audit(api: Api) -> list[tuple[str, dict[str, Any]]]:
    return [(one.action, one.detail) for one in await api.context.audit.list(limit=10)]


async def test_it_is_off_until_an_admin_turns_it_on_and_that_is_written_down(api: Api) -> None:
    key_id = await key_of(api)
    assert (await api.call("GET", "/captures"))[1] == {"data": []}
    status, key = await api.call("POST", "/keys/app/capture", {"for_s": 60})
    assert (status, key["capture_until"] is not None) == (200, True)
    assert (await audit(api))[0] == ("key.capture", {"name": "app", "for_s": 60.0})
    await captured(api, key_id)
    [listed] = (await api.call("GET", "/captures"))[1]["data"]
    assert (listed["key_name"], listed["requests"]) == ("app", 1)
    [row] = (await api.call("GET", "/keys"))[1]["data"]
    assert row["capture_until"] == key["capture_until"]
    _, explained = await api.call("GET", "/requests/req_1/explain")
    assert explained["captured"]

    status, key = await api.call("DELETE", "/keys/app/capture")
    assert (status, key["capture_until"]) == (200, None)
    assert (await audit(api))[0][0] == "key.capture_off"
    assert (await api.call("GET", "/requests/req_1/captured"))[0] == 404
    _, explained = await api.call("GET", "/requests/req_1/explain")
    assert not explained["captured"]


async def test_a_look_is_written_down_and_shows_no_secret_of_this_relay(api: Api) -> None:
    key_id = await key_of(api)
    await api.call("POST", "/keys/app/capture", {"for_s": 60})
    await captured(api, key_id)
    status, headers, raw = await api.request(
        "GET", "/requests/req_1/captured", None, token="wai_at_test", raw=None
    )
    found = json.loads(raw)
    assert status == 200
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"
    assert json.loads(found["prompt"])["messages"] == HOSTILE + " wai_sk_…"
    assert found["answer"] == "answer \ufffd"
    assert (found["model"], found["node"], found["status"]) == ("m", "box", 200)
    assert (await audit(api))[0] == ("request.look", {"key": key_id, "name": "app"})


async def test_a_key_that_is_revoked_leaves_nothing_behind(api: Api) -> None:
    key_id = await key_of(api)
    await api.call("POST", "/keys/app/capture", {"for_s": 60})
    await captured(api, key_id)
    await api.call("DELETE", "/keys/app")
    assert api.context.captures.states() == []
    assert (await api.call("GET", "/requests/req_1/captured"))[0] == 404


@pytest.mark.parametrize("for_s", [0, 9, 3601, "60", None, -1])
async def test_a_time_out_of_its_range_captures_nothing(api: Api, for_s: object) -> None:
    await key_of(api)
    status, _ = await api.call("POST", "/keys/app/capture", {"for_s": for_s})
    assert status == 400
    assert api.context.captures.states() == []


async def test_a_request_is_sent_again_as_it_was_or_with_another_model(
    store: SqliteStore, clock: Clock
) -> None:
    sent: list[tuple[str, bytes | None, Any]] = []
    records: list[RequestRecord] = []

    async def handle(exchange: Exchange) -> None:
        body = await exchange.read()
        request = exchange.request
        assert api.context.keys.authenticate(request.headers).id == "key_trial"
        sent.append((request.path, request.index.get(b"x-wai-node"), json.loads(body)))
        exchange.start(200, [])
        exchange.write(b"again")
        exchange.end()
        record = RequestRecord(request.request_id, 2.0, "POST", request.path, served_model="m2")
        record.node, record.tokens, record.ttft_ms = "attic", TokenCounts(7, 0, 3), 12.0
        records.append(record)
        api.context.explanations.remember(record)

    api = await make_api(store, clock, handle)
    api.fleet.known = [make_node()]
    key_id = await key_of(api)
    await api.call("POST", "/keys/app/capture", {"for_s": 60})
    await captured(api, key_id, prompt='{"model": "m", "seed": 1}')
    status, found = await api.call("POST", "/requests/req_1/replay", {})
    assert (status, found["answer"], found["node"], found["status"]) == (200, "again", "attic", 200)
    assert (found["prompt_tokens"], found["completion_tokens"], found["ttft_ms"]) == (7, 3, 12.0)
    assert found["id"] == records[0].request_id
    await api.call("POST", "/requests/req_1/replay", {"node": "box", "model": "m2"})
    assert sent == [
        ("/v1/chat/completions", None, {"model": "m", "seed": 1}),
        ("/v1/chat/completions", b"box", {"model": "m2", "seed": 1}),
    ]
    assert (await audit(api))[0] == (
        "request.replay",
        {"key": key_id, "node": "box", "model": "m2"},
    )
    status, answer = await api.call("POST", "/requests/req_1/replay", {"node": "boxx"})
    assert (status, "did you mean 'box'" in answer["error"]["message"]) == (404, True)
    assert len(sent) == 2


async def test_what_was_not_captured_whole_is_not_sent_again(api: Api) -> None:
    key_id = await key_of(api)
    await api.call("POST", "/keys/app/capture", {"for_s": 60})
    await captured(api, key_id)
    found = api.context.captures.find("req_1")
    assert found is not None
    found.prompt_cut = True
    status, answer = await api.call("POST", "/requests/req_1/replay", {})
    assert (status, "not captured to its end" in answer["error"]["message"]) == (400, True)
    await captured(api, key_id, "req_2", "no json")
    status, answer = await api.call("POST", "/requests/req_2/replay", {"model": "m2"})
    assert (status, "no JSON" in answer["error"]["message"]) == (400, True)
    assert (await api.call("POST", "/requests/req_3/replay", {}))[0] == 404
