"""A request whose model is loaded first: what is written down of it, and what its failure does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.fleets import JSON, FakeNode, FakeStream
from wai_protocol.errors import Fault
from wai_relay.contracts.records import Load
from wai_relay.observe.explain import explain

from .test_gateway import MODEL, REPLY, answers, error_of, rig

pytestmark = pytest.mark.anyio


def loads_first(stream: FakeStream) -> None:
    stream.load = Load(8000, 1200, ("other",))
    stream.answer(200, JSON, REPLY)


def fails_to_load(stream: FakeStream) -> None:
    stream.sink.on_reset(Fault.OVERLOADED, "m is not served: the server ended: not enough memory")


async def test_the_story_of_a_request_tells_of_the_load_and_of_who_made_room() -> None:
    r = rig(FakeNode("gpu1", MODEL, script=loads_first))
    assert (await r.ask()).status == 200
    [attempt] = explain(r.records[0]).attempts
    assert attempt.load is not None
    assert (attempt.load.load_ms, attempt.load.room_ms) == (8000, 1200)
    assert attempt.load.made_room == ("other",)


async def test_a_load_that_fails_is_tried_on_the_other_node() -> None:
    good = FakeNode("a-good", MODEL, script=answers(200, JSON, REPLY))
    r = rig(good, FakeNode("z-broken", MODEL, script=fails_to_load))
    exchange = await r.ask()
    assert (exchange.status, exchange.header(b"x-wai-node")) == (200, b"a-good")
    told: list[Any] = [attempt.load for attempt in r.records[0].tried]
    assert told == [None, None]


async def test_a_load_that_fails_everywhere_is_a_clear_refusal() -> None:
    r = rig(FakeNode("gpu1", MODEL, script=fails_to_load))
    exchange = await r.ask()
    assert exchange.status == 503
    assert "not enough memory" in error_of(exchange)["message"]
