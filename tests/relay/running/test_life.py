"""A relay in this process: what it opened is closed again, also when its start fails half-way."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from wai_protocol.errors import StoreError, TransportError
from wai_relay.config import RelayConfig
from wai_relay.fleet.provider_config import ProviderConfig
from wai_relay.running.life import LOCK_OWNER, open_relay
from wai_relay.running.reload import LiveConfig
from wai_transport.folder import FolderLock

pytestmark = pytest.mark.anyio


def unchanged(config: RelayConfig) -> LiveConfig:
    return LiveConfig(config, lambda: config)


def no_log(_: RelayConfig) -> None:
    pass


async def healthz(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    try:
        return await reader.read()
    finally:
        writer.close()


def is_free(data: Path) -> bool:
    return FolderLock.holder(data, LOCK_OWNER) is None


async def test_a_relay_that_has_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    data = tmp_path / "relay"
    live = unchanged(RelayConfig(data, listen="127.0.0.1:0", tls="off"))
    before = asyncio.all_tasks()
    async with open_relay(live, no_log, stop=asyncio.Event()) as relay:
        assert not (data / "relay.json").exists()  # nobody is told of it yet
        relay.take_over(None)
        assert str(relay.port) in json.loads((data / "relay.json").read_text())["url"]
        assert (await healthz(relay.port)).startswith(b"HTTP/1.1 200 ")
        assert not is_free(data)
        await relay.drain(asyncio.Event())
    assert is_free(data)
    assert not (data / "relay.json").exists()
    assert asyncio.all_tasks() == before


async def test_a_port_that_is_taken_leaves_nothing_open(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        live = unchanged(RelayConfig(tmp_path / "relay", listen=listen))
        with pytest.raises(TransportError, match="Choose another address with --listen"):
            async with open_relay(live, no_log, stop=asyncio.Event()):
                pass
    assert is_free(tmp_path / "relay")
    assert asyncio.all_tasks() == before


async def test_parts_that_can_not_be_built_leave_nothing_open(tmp_path: Path) -> None:
    provider = ProviderConfig("cloud", "http://127.0.0.1:1/v1", (), key_file=tmp_path / "missing")
    config = RelayConfig(tmp_path / "relay", listen="127.0.0.1:0", providers=(provider,))
    before = asyncio.all_tasks()
    with pytest.raises(StoreError, match="missing"):
        async with open_relay(unchanged(config), no_log, stop=asyncio.Event()):
            pass
    assert is_free(tmp_path / "relay")
    assert asyncio.all_tasks() == before
