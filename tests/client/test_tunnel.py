"""A tunnel that waits, or whose dial gets no answer, goes on at once when the network changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from wai_node.tunnel.backoff import Backoff
from wai_node.tunnel.dial import RelayAddress, is_final
from wai_node.tunnel.tunnel import Tunnel
from wai_protocol.errors import AuthError, Fault
from wai_protocol.events import Event
from wai_protocol.handshake import Hello, Welcome
from wai_protocol.identity import NodeKey
from wai_transport.live_session import LiveSession

pytestmark = pytest.mark.anyio


class Owner:
    """Keeps what the tunnel said of its dials."""

    def __init__(self) -> None:
        self.problems: asyncio.Queue[str] = asyncio.Queue()

    def on_event(self, session: LiveSession, event: Event) -> None:
        pass

    def on_session(self, session: LiveSession, welcome: Welcome) -> None:
        pass

    def on_session_ended(self, session: LiveSession) -> None:
        pass

    def on_dialled(self, problem: str) -> None:
        self.problems.put_nowait(problem)


class ForEver(Backoff):
    """Waits an hour before each try, and for each answer."""

    @property
    def patience_s(self) -> float:
        return 3600.0

    def next_wait_s(self, now: float, at_least_s: float = 0.0) -> float:
        return 3600.0


class Door:
    """A port that takes connections and says nothing, or hangs up."""

    def __init__(self, *, hangs_up: bool) -> None:
        self.came: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self._hangs_up = hangs_up

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.put_nowait(writer)
        if not self._hangs_up:
            await reader.read(-1)
        writer.close()


@asynccontextmanager
async def running(door: Door) -> AsyncIterator[tuple[Tunnel, Owner]]:
    """A tunnel that dials `door`, and waits an hour whenever it may."""
    key, owner = NodeKey.generate(), Owner()
    async with await asyncio.start_server(door.accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        address = RelayAddress(f"http://127.0.0.1:{port}", b"r" * 32, None)
        tunnel = Tunnel(address, key, Hello(key.public, "box", b""), owner)
        tunnel._backoff = ForEver()
        task = asyncio.ensure_future(tunnel.run())
        try:
            yield tunnel, owner
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_dial_that_gets_no_answer_is_given_up_when_the_network_changes() -> None:
    door = Door(hangs_up=False)
    async with running(door) as (tunnel, _):
        for _ in range(3):
            await door.came.get()
            tunnel.redial()
        await door.came.get()


async def test_a_wait_for_the_next_try_ends_when_the_network_changes() -> None:
    door = Door(hangs_up=True)
    async with running(door) as (tunnel, owner):
        await door.came.get()
        await owner.problems.get()
        await asyncio.sleep(0)  # it waits now
        tunnel.redial()
        await door.came.get()


async def test_a_change_that_comes_between_a_dial_and_the_wait_is_not_missed() -> None:
    door = Door(hangs_up=True)
    async with running(door) as (tunnel, owner):
        once = iter([tunnel.redial])
        told = owner.on_dialled

        def on_dialled(problem: str) -> None:
            told(problem)
            for redial in once:
                redial()

        owner.on_dialled = on_dialled  # type: ignore[method-assign]
        await door.came.get()
        await door.came.get()


def test_a_captive_portal_is_no_final_answer() -> None:
    # It answers TLS with a certificate of its own; the relay is there again behind it.
    assert not is_final(AuthError("this is not the relay", Fault.PROOF_INVALID))
    assert is_final(AuthError("removed", Fault.NODE_REMOVED))
    assert is_final(AuthError("copied", Fault.IDENTITY_COPIED))
