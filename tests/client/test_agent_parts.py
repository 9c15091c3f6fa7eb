"""A part of the node that fails: the node goes on, and says which part it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from wai_node import supervision
from wai_node.agent import Agent
from wai_node.main import _Models, _work
from wai_node.managed.policy import ManagedSettings
from wai_node.managed.pulls.pulls import Pulls
from wai_node.managed.supervisor import Supervisor
from wai_node.models.hub import Hub, HubSettings
from wai_node.models.sampler import Looker, Sampler
from wai_node.standing import Standing
from wai_node.tunnel.backoff import Backoff
from wai_node.tunnel.dial import RelayAddress
from wai_node.tunnel.tunnel import Tunnel
from wai_node.upstreams.kinds import KINDS
from wai_protocol.errors import NodeUnavailable
from wai_protocol.handshake import Hello
from wai_protocol.identity import NodeKey

pytestmark = pytest.mark.anyio

NOWHERE = RelayAddress("http://127.0.0.1:1", b"r" * 32, None)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(supervision, "RECOVERED_S", 0.05)


class Node:
    """An agent without a relay, and what it has said of how it stands."""

    def __init__(self) -> None:
        self.said: list[Standing] = []
        key = NodeKey.generate()
        self.agent = Agent(NOWHERE, key, "box", version="0", on_standing=self.said.append)

    async def until(self, condition: Callable[[Standing], object]) -> None:
        async with asyncio.timeout(20):
            while not self.said or not condition(self.said[-1]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # what it says next is no event of ours


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait((task,))


@pytest.mark.parametrize("part", ["tunnel 0", "network watch", "path watch"])
async def test_any_part_that_fails_is_told_and_started_again(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    async def failing(*_: object) -> None:
        starts.append(1)
        if len(starts) < 3:
            raise ZeroDivisionError
        await asyncio.Event().wait()

    node = Node()
    match part:
        case "network watch":
            monkeypatch.setattr("wai_node.agent.watch_network", failing)
        case "path watch":
            monkeypatch.setattr(node.agent, "_look_at_paths", failing)
        case _:
            monkeypatch.setattr(next(iter(node.agent.links)), "run", failing)
    async with running(node.agent.run()):
        await node.until(lambda standing: standing.parts_down.get(part) == "ZeroDivisionError")
        await node.until(lambda standing: not standing.parts_down)
    assert len(starts) == 3


async def test_managed_models_that_can_not_be_brought_back_leave_the_node_running(
    tmp_path: Path,
) -> None:
    (tmp_path / "wanted.json").mkdir()  # reads as an OSError, also for root
    settings = ManagedSettings(folder=tmp_path, models_folder=tmp_path / "models")
    hub = Hub(HubSettings("http://127.0.0.1:1", None))
    node = Node()
    supervisor = Supervisor(settings, hub, lambda: "key", parts=node.agent.parts)
    pulls = Pulls(settings, node.agent.board, KINDS)
    sampler = Sampler(Looker(), dict, lambda name, value: None)
    async with running(_work(node.agent, _Models(supervisor, pulls, sampler))):
        await node.until(lambda standing: "managed models" in standing.parts_down)
        assert "wanted.json" in node.said[-1].parts_down["managed models"]
        with pytest.raises(NodeUnavailable, match="its log says why"):
            await supervisor.deploy("a/b-GGUF")
        with pytest.raises(NodeUnavailable, match="its log says why"):
            await supervisor.remove("a/b-GGUF:Q4_K_M")
        (tmp_path / "wanted.json").rmdir()
        await node.until(lambda standing: not standing.parts_down)


class Session:
    """A tunnel's session with a connection."""

    attached, ended, addresses = True, None, None
    closed = False

    def close(self) -> None:
        self.closed = True


class Faulty(Backoff):
    def lost(self, now: float) -> None:
        raise ZeroDivisionError


async def test_a_tunnel_that_fails_keeps_its_session_until_it_is_cancelled() -> None:
    key = NodeKey.generate()
    tunnel = Tunnel(NOWHERE, key, Hello(key.public, "box", b""), cast(Any, None))
    session = Session()
    tunnel._session = cast(Any, session)
    tunnel._backoff = Faulty()
    task = asyncio.ensure_future(tunnel.run())
    await asyncio.sleep(0)
    tunnel._wake.set()
    await asyncio.wait((task,))
    assert isinstance(task.exception(), ZeroDivisionError)
    assert not session.closed
    async with running(tunnel.run()):
        await asyncio.sleep(0)
    assert session.closed
