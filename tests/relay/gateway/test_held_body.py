"""Long bodies are held in memory or on disk, within their budgets, and leave nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from wai_protocol.errors import Fault, WaiError
from wai_relay.gateway import held_body
from wai_relay.gateway.body_budget import BodyBudget
from wai_relay.gateway.held_body import FILE_PIECE_BYTES, HeldBody, Spool

pytestmark = pytest.mark.anyio

DATA = os.urandom(5 * FILE_PIECE_BYTES + 7)


async def filled(body: HeldBody, step: int = 10_000) -> None:
    for at in range(0, len(DATA), step):
        await body.add(DATA[at : at + step])


async def read(body: HeldBody, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in body.pieces(start, end)])


@pytest.mark.parametrize(
    "memory_bytes", [1 << 30, 0, 4 * FILE_PIECE_BYTES], ids=["memory", "disk", "both"]
)
async def test_a_body_comes_back_as_it_went_in(tmp_path: Path, memory_bytes: int) -> None:
    memory, spool = BodyBudget(memory_bytes), Spool(tmp_path, 1 << 30)
    body = HeldBody("key", memory, spool)
    await filled(body)
    assert (memory.held_bytes > 0) == (memory_bytes == 1 << 30)
    assert memory.held_bytes + spool.budget.held_bytes == len(DATA)
    for _ in range(2):
        assert await body.whole() == DATA
    for start, end in ((0, 1), (9_999, 10_001), (5, len(DATA) - 5), (7, 7)):
        assert await read(body, start, end) == DATA[start:end]
    assert not os.listdir(tmp_path)  # the file has no name
    body.close()
    body.close()
    assert memory.held_bytes == spool.budget.held_bytes == 0


async def test_a_budget_that_is_used_up_is_503(tmp_path: Path) -> None:
    memory, spool = BodyBudget(0), Spool(tmp_path, len(DATA))
    body = HeldBody("key", memory, spool)
    with pytest.raises(WaiError, match="on its disk") as caught:
        await filled(body)  # a key may hold half
    assert (caught.value.fault, caught.value.retry_after_s) == (Fault.OVERLOADED, 1.0)
    body.close()
    assert spool.budget.held_bytes == 0


@pytest.mark.parametrize("broken", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_costs_this_request_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    memory, spool = BodyBudget(0), Spool(tmp_path, 1 << 30)
    other = HeldBody("key", memory, spool)
    await filled(other)
    await other.whole()
    written = os.pwrite

    def fail(file: int, data: memoryview, at: int) -> int:
        if at >= FILE_PIECE_BYTES:
            raise OSError(broken, os.strerror(broken))
        return written(file, data, at)

    monkeypatch.setattr(os, "pwrite", fail)
    body = HeldBody("key", memory, spool)
    says = "too full" if broken == errno.ENOSPC else "can't hold"
    with pytest.raises(WaiError, match=says) as caught:
        await filled(body)
    assert caught.value.fault is Fault.OVERLOADED
    body.close()
    assert spool.budget.held_bytes == len(DATA)
    assert await other.whole() == DATA
    other.close()


async def test_the_disk_is_not_filled_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_body, "LEAST_FREE_BYTES", 1 << 60)
    body = HeldBody("key", BodyBudget(0), Spool(tmp_path, 1 << 30))
    with pytest.raises(WaiError, match="too full"):
        await filled(body)
    body.close()


async def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    body = HeldBody("key", BodyBudget(0), Spool(tmp_path / "gone", 1 << 30))
    with pytest.raises(WaiError, match="can't hold"):
        await filled(body)
    body.close()


async def test_what_was_cancelled_in_the_middle_is_not_lost(tmp_path: Path) -> None:
    """An upload that ends early is cancelled wherever it waits; the next one has all of it."""
    spool = Spool(tmp_path, 1 << 30)
    body = HeldBody("key", BodyBudget(0), spool)
    for at in range(0, len(DATA), 10_000):
        adding = asyncio.ensure_future(body.add(DATA[at : at + 10_000]))
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait([adding])
    for _ in range(3):
        reading = asyncio.ensure_future(body.whole())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
    assert await body.whole() == DATA
    body.close()
    assert spool.budget.held_bytes == 0
