"""The live feed: what a listener is told, when, and what it costs to be slow."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from msgspec.structs import replace

from wai_protocol.errors import Fault, WaiError
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.admin import events
from wai_relay.admin.deployed import MAX_NODE_BYTES, MAX_PER_NODE, Deployed
from wai_relay.admin.events import KEEP_ALIVE_S, MAX_LISTENERS, MAX_WAITING, FeedReader
from wai_relay.contracts.records import RequestRecord

from .fakes import TOKEN, Api, exchange, make_node

pytestmark = pytest.mark.anyio

DEPLOYED: Final = {
    "model": "tiny/llama-GGUF:F16",
    "state": "downloading",
    "reason": "",
    "log_tail": [],
    "swap_error": "",
    "context": 512,
    "context_served": None,
    "slots": 2,
    "size_bytes": 640_000,
    "in_flight": 0,
    "progress": {"done_bytes": 1, "total_bytes": 640_000, "rate_bps": 2.0, "eta_s": None},
}


def parsed(data: bytes) -> list[tuple[str, Any]]:
    """The events in some SSE bytes."""
    found = []
    for block in data.decode().split("\n\n"):
        if block.startswith("event: "):
            name, _, told = block.removeprefix("event: ").partition("\ndata: ")
            found.append((name, json.loads(told)))
    return found


class Reader:
    """One who listens, and takes what comes when it is asked to."""

    def __init__(self, api: Api, allowed: Callable[[], bool] = lambda: True) -> None:
        self._api = api
        self._bytes = api.context.feed.listen(allowed)
        self._come: deque[tuple[str, Any]] = deque()

    async def whole(self) -> list[tuple[str, Any]]:
        """What a reader gets first."""
        return parsed(await anext(self._bytes))

    async def next(self, name: str) -> Any:
        """The next event of this name; what comes before it is skipped. Time goes by until then."""
        while True:
            while self._come:
                found, told = self._come.popleft()
                if found == name:
                    return told
            waiting = asyncio.ensure_future(self.bytes())
            for _ in range(100):
                await settled()
                if waiting.done():
                    break
                self._api.ticker.tick()
            assert waiting.done(), f"no {name} in a hundred looks"
            self._come.extend(parsed(await waiting))

    async def bytes(self) -> bytes:
        """What comes next; b"" at the end."""
        return await anext(self._bytes, b"")

    async def close(self) -> None:
        await self._bytes.aclose()  # type: ignore[attr-defined]  # it is a generator


@asynccontextmanager
async def reading(api: Api, allowed: Callable[[], bool] = lambda: True) -> AsyncIterator[Reader]:
    reader = Reader(api, allowed)
    try:
        yield reader
    finally:
        await reader.close()


async def settled() -> None:
    """Let what can run now run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def tick(api: Api, times: int = 1) -> None:
    for _ in range(times):
        api.ticker.tick()
        await settled()


def enter(api: Api, name: str) -> Any:
    record = RequestRecord(name, 1.0, "POST", "/v1/chat/completions", model="m")
    return api.context.live.enter(record, 0.0, lambda: None)


async def test_who_comes_gets_the_whole_and_then_what_differs(api: Api) -> None:
    api.fleet.known = [make_node(answers={"model.list": []})]
    first = enter(api, "req_1")
    async with reading(api) as reader:
        begun = await reader.whole()
        assert [name for name, _ in begun] == [
            *("nodes", "requests", "deployments", "hardware", "figures", "history", "pulse")
        ]
        assert [told["full"] for _, told in begun[:4]] == [True, True, True, True]
        assert [row["id"] for row in begun[1][1]["set"]] == ["req_1"]
        enter(api, "req_2")
        api.context.live.leave(first)
        told = await reader.next("requests")
        assert [row["id"] for row in told["set"]] == ["req_2"]
        assert told["gone"] == ["req_1"]
        api.fleet.known[0].status = NodeStatus((ModelStatus("m", "llama"),))
        told = await reader.next("nodes")
        assert [row["models"] for row in told["set"]] == [["m"]]
        api.fleet.known.clear()
        assert len((await reader.next("nodes"))["gone"]) == 1


async def test_however_much_changes_there_is_one_message_for_each_look(api: Api) -> None:
    nodes = [make_node(answers={"model.list": []}) for _ in range(50)]
    for number, node in enumerate(nodes):
        node.record = replace(node.record, id=f"node_{number}", name=f"box-{number}")
    api.fleet.known = nodes
    for number in range(500):
        enter(api, f"req_{number}")
    async with reading(api) as reader:
        await reader.whole()
        for look in range(4):
            for node in nodes:
                for busy in range(5):
                    models = (ModelStatus("m", "llama", slots_busy=10 * look + busy),)
                    node.status = NodeStatus(models)
            api.ticker.tick()
            told = parsed(await reader.bytes())
            assert [name for name, _ in told if name != "pulse"] == ["nodes"]
            assert len(told[0][1]["set"]) == 50


async def test_a_figure_of_a_node_is_told_when_it_changes_and_once(api: Api) -> None:
    api.fleet.known = [make_node(answers={"model.list": []})]
    async with reading(api) as reader:
        await reader.whole()
        api.context.node_hours.tick()
        told = await reader.next("figures")
        [row] = told["set"]
        assert (row["tokens_per_s"], row["rtt_ms"]) == (0.0, None)
        api.context.node_hours.tick()
        api.fleet.known[0].rtt_s = 0.0123
        api.context.node_hours.tick()
        [row] = (await reader.next("figures"))["set"]
        assert row["rtt_ms"] == 12.3


async def test_a_nodes_last_hour_is_asked_for_by_its_name(api: Api) -> None:
    api.fleet.known = [make_node()]
    status, history = await api.call("GET", "/nodes/box/history")
    assert (status, len(history["slots_busy"]), history["step_s"]) == (200, 240, 15.0)
    assert (await api.call("GET", "/nodes/bix/history"))[0] == 404


async def test_a_change_by_an_admin_is_told_of(api: Api) -> None:
    async with reading(api) as reader:
        await reader.next("nodes")
        await api.call("POST", "/keys", {"name": "app"})
        assert (await reader.next("changed"))["count"] == 1


async def test_nothing_is_looked_at_while_nobody_listens(api: Api) -> None:
    async with reading(api) as reader:
        await reader.next("nodes")
    node = make_node(answers={"model.list": []})
    api.fleet.known = [node]
    await tick(api, 3)
    assert node.calls == []
    assert api.ticker.due == []


def test_who_does_not_keep_up_gets_the_whole_again_not_a_longer_queue() -> None:
    listener = FeedReader()
    listener.behind = False
    for _ in range(MAX_WAITING):
        listener.offer(b"difference")
    assert (len(listener.waiting), listener.behind) == (MAX_WAITING, False)
    listener.offer(b"one too many")
    assert (len(listener.waiting), listener.behind) == (0, True)
    listener.offer(b"and another")
    assert len(listener.waiting) == 0


async def test_a_slow_reader_sees_the_newest_state_at_last(api: Api) -> None:
    async with reading(api) as reader:
        await reader.next("requests")
        for n in range(3 * MAX_WAITING):
            enter(api, f"req_{n}")
            await tick(api)
        told = await reader.next("requests")
        assert told["full"] is True
        assert len(told["set"]) == 3 * MAX_WAITING


async def test_one_slow_reader_does_not_hold_up_another(api: Api) -> None:
    async with reading(api) as slow, reading(api) as quick:
        await slow.next("requests")
        await quick.next("requests")
        for n in range(2 * MAX_WAITING):
            enter(api, f"req_{n}")
            told = await quick.next("requests")
            assert [row["id"] for row in told["set"]] == [f"req_{n}"]


async def test_silence_is_broken_before_a_proxy_would_cut_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEEP_ALIVE_S < 30
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.01)
    async with reading(api) as reader:
        await reader.whole()
        assert (await reader.bytes()).startswith(b":")


async def test_a_reader_whose_sign_in_ended_hears_no_more(api: Api) -> None:
    good = True
    async with reading(api, lambda: good) as reader:
        await reader.next("pulse")
        good = False
        enter(api, "req_1")
        await tick(api)
        assert await reader.bytes() == b""


async def test_closing_ends_every_reader_at_once(api: Api) -> None:
    async with reading(api) as reader:
        await reader.next("pulse")
        waiting = asyncio.ensure_future(reader.bytes())
        await settled()
        api.context.feed.close()
        assert await waiting == b""


async def test_more_listeners_than_there_may_be_are_told_so(api: Api) -> None:
    readers = [Reader(api) for _ in range(MAX_LISTENERS)]
    for reader in readers:
        await reader.next("nodes")
    try:
        headers = {"authorization": f"Bearer {TOKEN}"}
        status, _, body = await exchange(api.app, "GET", "/admin/v1/events", headers)
        assert status == 503
        assert b"too many watch" in body
    finally:
        for reader in readers:
            await reader.close()


async def test_strangers_get_no_feed(api: Api) -> None:
    assert (await exchange(api.app, "GET", "/admin/v1/events"))[0] == 401


# -- deployments


async def test_a_download_is_watched_from_its_start_to_the_models_end(api: Api) -> None:
    node = make_node(answers={"model.list": []})
    api.fleet.known = [node]
    hear = api.context.feed.deployed.hear
    async with reading(api) as reader:
        assert (await reader.next("deployments")) == {"full": True}
        hear(node, "deployment", DEPLOYED)
        [row] = (await reader.next("deployments"))["set"]
        assert (row["node"], row["state"], row["progress"]["done_bytes"]) == (
            *("box", "downloading"),
            1,
        )
        progress = {**DEPLOYED["progress"], "done_bytes": 9}  # type: ignore[dict-item]
        hear(node, "deployment", {**DEPLOYED, "progress": progress})
        assert (await reader.next("deployments"))["set"][0]["progress"]["done_bytes"] == 9
        hear(node, "deployment", {**DEPLOYED, "state": "absent", "progress": None})
        assert (await reader.next("deployments"))["gone"] == [row["id"]]


async def test_what_was_deployed_before_anybody_looked_is_asked_for_once(api: Api) -> None:
    node = make_node(answers={"model.list": [DEPLOYED, {**DEPLOYED, "state": "absent"}]})
    others = (make_node(connected=False), make_node(state="offline"))
    for n, other in enumerate(others):
        other.record = replace(other.record, id=f"node_{n}")
    api.fleet.known = [node, *others]
    async with reading(api) as reader:
        await reader.next("deployments")
        [row] = (await reader.next("deployments"))["set"]
        await tick(api, 5)
        assert [method for method, _ in node.calls] == ["model.list"]
        node.reconnects += 1  # what it told meanwhile was heard by nobody
        node.answers["model.list"] = []
        assert (await reader.next("deployments"))["gone"] == [row["id"]]
        assert len(node.calls) == 2


async def test_the_deployments_of_a_node_that_is_gone_go_with_it(api: Api) -> None:
    node = make_node(answers={"model.list": [DEPLOYED]})
    api.fleet.known = [node]
    async with reading(api) as reader:
        await reader.next("deployments")
        await reader.next("deployments")
        node.state, node.connected = "reconnecting", False
        await tick(api, 5)
        assert len(api.context.feed.deployed.rows) == 1
        node.state = "offline"
        assert len((await reader.next("deployments"))["gone"]) == 1


async def test_a_node_that_does_not_answer_is_not_asked_each_tick(api: Api) -> None:
    node = make_node(answers={"model.list": WaiError("no", Fault.ROUTE_REFUSED)})
    api.fleet.known = [node]
    async with reading(api) as reader:
        await reader.next("pulse")
        await tick(api, 10)
    assert len(node.calls) == 1


@pytest.mark.parametrize(
    "told", [None, [], {}, "x", {**DEPLOYED, "slots": "two"}, {**DEPLOYED, "model": None}]
)
async def test_an_event_that_makes_no_sense_is_not_shown(told: Any) -> None:
    deployed = Deployed()
    deployed.hear(make_node(), "deployment", told)
    deployed.hear(make_node(), "weather", DEPLOYED)
    assert deployed.rows == {}


async def test_a_node_that_tells_of_endless_models_fills_no_memory() -> None:
    deployed = Deployed()
    for n in range(MAX_PER_NODE + 10):
        deployed.hear(make_node(), "deployment", {**DEPLOYED, "model": f"m{n}"})
    assert len(deployed.rows) == MAX_PER_NODE


@pytest.mark.parametrize("how", ["told", "asked"])
async def test_deployments_with_long_texts_fill_no_memory(how: str) -> None:
    deployed = Deployed()
    long = "x" * 250_000
    rows = [
        {
            **DEPLOYED,
            "model": f"m{n}",
            "state": long,
            "reason": long,
            "swap_error": long,
            "log_tail": [long + str(line) for line in range(20)],
        }
        for n in range(MAX_PER_NODE)
    ]
    if how == "told":
        for row in rows:
            deployed.hear(make_node(), "deployment", row)
    else:
        await deployed.ask(make_node(answers={"model.list": rows}))
    size = sum(
        sys.getsizeof(text)
        for row in deployed.rows.values()
        for text in (row.id, row.model, row.state, row.reason, row.swap_error, *row.log_tail)
    )
    assert 0 < size <= MAX_NODE_BYTES


@pytest.mark.parametrize(
    "wrong", [{"model": "x" * 250_000}, {"size_bytes": 1 << 63}, {"context": -1}]
)
async def test_a_deployment_out_of_bounds_is_not_shown(wrong: dict[str, Any]) -> None:
    deployed = Deployed()
    deployed.hear(make_node(), "deployment", {**DEPLOYED, **wrong})
    assert deployed.rows == {}
