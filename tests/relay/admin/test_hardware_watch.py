"""Nodes tell of their machines each second only while somebody looks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from wai_protocol.errors import Fault, WaiError
from wai_relay.admin.hardware_watch import ASK_EVERY_S, GOOD_FOR_S, HardwareWatch

from .fakes import Api, FakeNode, make_node
from .test_events import reading

pytestmark = pytest.mark.anyio

TOLD = {"cpu": 12.5, "ram_used": 4, "ram_total": 8, "gpus": [{"name": "H200", "use": 50.0}]}


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_node_is_asked_again_before_its_time_is_over() -> None:
    now = 0.0
    watch, node = HardwareWatch(lambda: now), make_node()
    for _ in range(3):
        watch.look([node])
    await settled()
    assert node.watched == [GOOD_FOR_S]
    now += ASK_EVERY_S
    watch.look([node])
    await settled()
    assert len(node.watched) == 2
    node.connected = False
    watch.look([node])
    node.connected = True
    watch.look([node])  # it has come back, perhaps as a new run
    await settled()
    assert len(node.watched) == 3
    watch.close()


async def test_an_older_node_is_asked_once_for_each_time_that_it_comes() -> None:
    now = 0.0
    watch = HardwareWatch(lambda: now)
    node: FakeNode = make_node(answers={"hardware.watch": WaiError("?", Fault.ROUTE_REFUSED)})
    for _ in range(3):
        watch.look([node])
        await settled()
        now += ASK_EVERY_S
    assert len(node.calls) == 1
    node.reconnects += 1
    watch.look([node])
    await settled()
    assert len(node.calls) == 2
    watch.close()


async def test_a_listener_gets_each_word_of_a_machine_and_hears_when_it_is_gone(api: Api) -> None:
    node = make_node(answers={"model.list": []})
    api.fleet.known = [node]
    book = api.context.feed.hardware
    async with reading(api) as reader:
        await reader.whole()
        book.hear(node.record.id, "hardware", TOLD)
        told = await reader.next("hardware")
        [row] = told["set"]
        assert (row["id"], row["now"]["gpus"][0]["use"]) == (node.record.id, 50.0)
        assert row["history"][-1] == 50.0
        assert node.watched
        node.state = "offline"
        assert (await reader.next("hardware"))["gone"] == [node.record.id]


async def test_nobody_who_looks_means_nobody_is_asked(api: Api) -> None:
    node = make_node(answers={"model.list": []})
    api.fleet.known = [node]
    api.context.feed.hardware.hear(node.record.id, "hardware", TOLD)
    await settled()
    assert node.watched == []
    assert cast(Any, replace(node)).watched == []
