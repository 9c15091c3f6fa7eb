"""A captured request in the gateway: kept is what the caller sent and got; it is sent again."""

from __future__ import annotations

import pytest

from tests.harness.fleets import JSON, SSE, FakeNode
from wai_protocol.errors import RequestError
from wai_relay.gateway.replay import Replays

from .test_gateway import CHAT, DONE, MODEL, REPLY, STREAM, TOKEN, answers, rig

pytestmark = pytest.mark.anyio


class Lender:
    """Lends the one key that the gateway's rig knows."""

    def __init__(self) -> None:
        self.lent: list[str] = []

    def lend(self, seconds: float) -> str:
        if self.lent:
            raise RequestError("too many trials at once")
        self.lent.append("wai_sk_test")
        return self.lent[-1]

    def take_back(self, secret: str) -> None:
        self.lent.remove(secret)


async def test_a_stream_is_kept_as_the_caller_got_it() -> None:
    r = rig(FakeNode("box", MODEL, script=answers(200, SSE, TOKEN, DONE)))
    r.gateway.captures.begin("key_1", 60.0)
    exchange = await r.ask(STREAM)
    found = r.gateway.captures.find("req_test")
    assert found is not None
    assert bytes(found.prompt) == STREAM
    assert bytes(found.answer) == b"".join(exchange.written)
    assert found.record is r.records[0]


async def test_a_refusal_is_kept_too() -> None:
    r = rig()
    r.gateway.captures.begin("key_1", 60.0)
    exchange = await r.ask()
    found = r.gateway.captures.find("req_test")
    assert found is not None
    assert bytes(found.answer) == b"".join(exchange.written)
    assert b"error" in found.answer


async def test_what_comes_without_a_good_key_is_nobodys_and_is_not_kept() -> None:
    r = rig(FakeNode("box", MODEL, script=answers(200, JSON, REPLY)))
    r.gateway.captures.begin("key_1", 60.0)
    await r.ask(headers=[(b"x-api-key", b"wai_sk_wrong")])
    assert r.gateway.captures.find("req_test") is None


async def test_a_request_is_sent_again_to_the_node_that_is_named() -> None:
    nodes = [FakeNode(name, MODEL, script=answers(200, JSON, REPLY)) for name in ("a", "b")]
    r = rig(*nodes)
    lender = Lender()
    replays = Replays(r.gateway.handle, lender)
    found = await replays.send("/v1/chat/completions", CHAT, node="b")
    assert (found.status, found.answer, found.cut) == (200, REPLY, False)
    assert [len(node.streams) for node in nodes] == [0, 1]
    assert nodes[1].streams[0].body == CHAT
    assert r.gateway.explanations.find(found.request_id) is r.records[-1]
    assert lender.lent == []


async def test_what_is_refused_is_an_answer_and_the_key_is_given_back() -> None:
    r = rig(FakeNode("a", MODEL, script=answers(200, JSON, REPLY)))
    lender = Lender()
    found = await Replays(r.gateway.handle, lender).send("/v1/nothing", CHAT, node=None)
    assert found.status == 404
    assert b"error" in found.answer
    assert lender.lent == []
