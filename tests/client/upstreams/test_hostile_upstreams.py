"""A hostile program on a port where the node looks: the node's other upstreams do not notice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.harness.hostile_server import MODES, hostile_server
from tests.harness.raw_upstream import Script, ok, raw_upstream, read_request
from wai_node import supervision
from wai_node.upstreams import Board, Probe, Watch
from wai_node.upstreams.consent import Consent
from wai_node.upstreams.detect import find_upstreams
from wai_node.upstreams.openai import OpenAIUpstream
from wai_protocol.status import MAX_COUNT, ModelStatus, NodeStatus

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and polls follow each other closely, and a server that is slow is slow soon."""
    for name in ("DISCOVER_S", "HURRIED_POLL_S", "POLL_S", "PUBLISH_S"):
        monkeypatch.setattr(f"wai_node.upstreams.watch.{name}", 0.02)
    monkeypatch.setattr("wai_node.upstreams.upstream.PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("wai_node.upstreams.detect.IDENTIFY_S", 0.4)
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(supervision, "RECOVERED_S", 0.05)


def listing(model: str, polls: list[int]) -> Script:
    async def script(r: asyncio.StreamReader, w: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(r)
            polls.append(1)
            body = json.dumps({"data": [{"id": model}]}).encode()
            found = head.startswith(b"GET /v1/models ")
            w.write(ok(body) if found else b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n")
            await w.drain()

    return script


@dataclass(slots=True)
class Node:
    """What a running watch has told, and how often its good upstream was asked."""

    statuses: list[NodeStatus] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)
    watch: Watch | None = None
    task: asyncio.Task[None] | None = None

    def on_change(self, status: NodeStatus) -> None:
        """The relay's side of it: what would end the session raises here."""
        assert replace(NodeStatus.from_wire(status.to_wire()), detail=status.detail) == status
        self.statuses.append(status)

    @property
    def ready(self) -> list[str]:
        return [m.id for m in self.statuses[-1].models if m.ready] if self.statuses else []

    async def until(self, condition: Callable[[], object]) -> None:
        assert self.task is not None
        async with asyncio.timeout(20):
            while not condition():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running_node(folder: Path, *ports: int, extra: OpenAIUpstream) -> AsyncIterator[Node]:
    node = Node()
    consent = Consent(folder)

    async def discover(known: frozenset[int]) -> list[OpenAIUpstream]:
        return await find_upstreams(consent, ports, except_for=known)  # type: ignore[return-value]

    node.watch = Watch(Board(), node.on_change, given=[extra], discover=discover)  # type: ignore[arg-type]
    node.task = asyncio.get_running_loop().create_task(node.watch.run())
    try:
        yield node
    finally:
        node.task.cancel()
        await asyncio.wait((node.task,))


@pytest.mark.parametrize("mode", MODES)
async def test_one_that_is_hostile_from_the_start_is_none_of_the_others_business(
    mode: str, tmp_path: Path
) -> None:
    polls: list[int] = []
    with hostile_server(mode) as hostile:
        async with raw_upstream(listing("good", polls)) as raw:
            good = OpenAIUpstream(raw.url)
            async with running_node(tmp_path, hostile.port, extra=good) as node:
                await node.until(lambda: "good" in node.ready)
                await node.until(lambda: hostile.asked >= 3)
                before = len(polls)
                await node.until(lambda: len(polls) >= before + 3)
                assert "good" in node.ready
                assert "parts_down" not in node.statuses[-1].detail


@pytest.mark.parametrize("mode", MODES)
async def test_one_that_turns_hostile_is_none_of_the_others_business(
    mode: str, tmp_path: Path
) -> None:
    polls: list[int] = []
    with hostile_server() as hostile:
        async with raw_upstream(listing("good", polls)) as raw:
            good = OpenAIUpstream(raw.url)
            async with running_node(tmp_path, hostile.port, extra=good) as node:
                await node.until(lambda: {"good", "decoy"} <= set(node.ready))
                hostile.mode = mode
                await node.until(lambda: hostile.asked >= 3)
                before = len(polls)
                await node.until(lambda: len(polls) >= before + 3)
                assert "good" in node.ready
                assert not node.statuses[-1].detail.get("parts_down")
                hostile.mode = "well-behaved"
                await node.until(lambda: {"good", "decoy"} <= set(node.ready))


class Faulty(OpenAIUpstream):
    """An upstream kind with a fault of its own: what it raises is no `WaiError`."""

    error: Exception | None = KeyError("x")

    async def probe(self) -> Probe:
        if self.error is not None:
            raise self.error
        return Probe((self.model("faulty"),))


async def test_a_watcher_that_fails_is_down_alone_and_comes_back(tmp_path: Path) -> None:
    polls: list[int] = []
    async with raw_upstream(listing("good", polls)) as raw:
        faulty, good = Faulty("http://127.0.0.1:1"), OpenAIUpstream(raw.url)
        async with running_node(tmp_path, extra=good) as node:
            assert node.watch is not None
            node.watch.add(faulty)
            down = {"upstream openai@127.0.0.1:1": "KeyError"}
            await node.until(lambda: node.ready and node.statuses[-1].detail.get("parts_down"))
            assert node.statuses[-1].detail["parts_down"] == down
            shown = node.statuses[-1].detail["upstreams"]
            assert shown["openai@127.0.0.1:1"]["up"] is False
            assert node.ready == ["good"]
            faulty.error = None
            await node.until(lambda: node.ready == ["good", "faulty"])
            await node.until(lambda: not node.statuses[-1].detail.get("parts_down"))
            faulty.error = ZeroDivisionError()
            await node.until(lambda: node.ready == ["good"])


async def test_a_discovery_that_fails_is_down_alone_and_comes_back(tmp_path: Path) -> None:
    looks: list[int] = []

    async def discover(known: frozenset[int]) -> list[OpenAIUpstream]:
        looks.append(1)
        if len(looks) < 4:
            raise RuntimeError
        return []

    async with raw_upstream(listing("good", [])) as raw:
        node = Node()
        node.watch = Watch(
            Board(),
            node.on_change,
            given=[OpenAIUpstream(raw.url)],
            discover=discover,  # type: ignore[arg-type]
        )
        node.task = asyncio.get_running_loop().create_task(node.watch.run())
        await node.until(lambda: "good" in node.ready)
        await node.until(lambda: len(looks) > 5)
        await node.until(lambda: not node.statuses[-1].detail.get("parts_down"))
        node.task.cancel()
        await asyncio.wait((node.task,))


async def test_a_status_that_could_not_be_told_is_told_again() -> None:
    failures = [ValueError(), OSError()]

    def on_change(status: NodeStatus) -> None:
        if failures:
            raise failures.pop()
        node.on_change(status)

    async with raw_upstream(listing("good", [])) as raw:
        node = Node()
        node.watch = Watch(Board(), on_change, given=[OpenAIUpstream(raw.url)])
        node.task = asyncio.get_running_loop().create_task(node.watch.run())
        await node.until(lambda: "good" in node.ready)
        node.task.cancel()
        await asyncio.wait((node.task,))


@pytest.mark.parametrize("count", [-1, MAX_COUNT + 1, 1 << 63, -(1 << 63)])
def test_a_count_that_the_status_can_not_carry_is_left_out(count: int) -> None:
    board = Board()
    upstream = OpenAIUpstream("http://127.0.0.1:1")
    board.add(upstream)
    board.probed(
        upstream,
        Probe((ModelStatus("m", "u", (), True, count, count, count, count),), counted=True),
    )
    status = board.status()
    assert NodeStatus.from_wire(status.to_wire()) == status
    assert status.models[0].context_tokens is None
    assert status.models[0].slots_total is None
