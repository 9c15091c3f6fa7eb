"""Captured prompts and answers: what is taken, how much, and that it is gone when it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.exchanges import FakeExchange, make_request
from wai_api.captures import MAX_CAPTURE_S
from wai_protocol.errors import RequestError
from wai_relay.contracts.records import RequestRecord
from wai_relay.http.exchange import Exchange
from wai_relay.observe import captures as module
from wai_relay.observe.captures import MAX_KEYS, MAX_REQUESTS, Captures

pytestmark = pytest.mark.anyio


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.cancelled = at, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """Captures whose time the test makes pass; `late` timers do not fire."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self.captures = Captures(
            clock=lambda: self.now,
            wall_clock=lambda: 1.8e9 + self.now,
            call_later=self._call_later,
        )

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        self.timers.append(Timer(self.now + delay_s, call))
        return self.timers[-1]

    def pass_time(self, seconds: float, *, late: bool = False) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now and not late]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            if not timer.cancelled:
                timer.call()

    async def request(self, name: str = "req_1", key: str = "key_1", **more: Any) -> Exchange:
        """A request with the prompt `ask`, answered with `say`."""
        headers = more.get("headers", [])
        inner = FakeExchange(
            make_request(headers=headers),
            more.get("pieces", [b"a", b"sk"]),
            websocket_key=more.get("websocket_key", b""),
        )
        record = RequestRecord(name, 1.0, "POST", "/v1/chat/completions", key)
        watched = self.captures.watched(inner, record, key)
        if more.get("websocket_key"):
            return watched
        while await watched.read():
            pass
        watched.start(200, [])
        for piece in more.get("answer", [b"s", b"ay"]):
            watched.write(piece)
        if not more.get("runs"):
            watched.end()
        assert inner.written == more.get("answer", [b"s", b"ay"])
        return watched


async def test_nothing_is_taken_unless_it_was_turned_on_for_that_key() -> None:
    rig = Rig()
    await rig.request()
    assert rig.captures.find("req_1") is None
    rig.captures.begin("key_2", 60.0)
    await rig.request()
    assert rig.captures.find("req_1") is None
    assert rig.captures.until("key_1") is None


async def test_what_passes_both_ways_is_taken_and_no_header_is() -> None:
    rig = Rig()
    assert rig.captures.begin("key_1", 60.0) == pytest.approx(1.8e9 + 160.0)
    await rig.request(headers=[(b"authorization", b"Bearer wai_sk_secret")])
    found = rig.captures.find("req_1")
    assert found is not None
    assert (bytes(found.prompt), bytes(found.answer)) == (b"ask", b"say")
    assert (found.prompt_cut, found.answer_cut, found.prompt_read) == (False, False, True)
    [state] = rig.captures.states()
    assert (state.key_id, state.requests, state.size_bytes) == ("key_1", 1, 6)


@pytest.mark.parametrize("late", [False, True])
async def test_at_the_end_of_its_time_everything_is_wiped_even_if_the_timer_is_late(
    late: bool,
) -> None:
    rig = Rig()
    rig.captures.begin("key_1", 60.0)
    await rig.request()
    found = rig.captures.find("req_1")
    assert found is not None
    rig.pass_time(60.0, late=late)
    assert rig.captures.find("req_1") is None
    assert rig.captures.states() == []
    assert (bytes(found.prompt), bytes(found.answer)) == (b"", b"")
    await rig.request("req_2")
    assert rig.captures.find("req_2") is None


async def test_turned_off_it_wipes_that_key_alone_and_takes_nothing_that_still_runs() -> None:
    rig = Rig()
    for key in ("key_1", "key_2"):
        rig.captures.begin(key, 60.0)
        await rig.request(f"req_of_{key}", key)
    running = await rig.request("req_running", runs=True)
    assert rig.captures.end("key_1")
    assert not rig.captures.end("key_1")
    running.write(b"more")
    assert rig.captures.find("req_of_key_1") is None
    assert rig.captures.find("req_running") is None
    assert rig.captures.find("req_of_key_2") is not None
    assert rig.captures.states()[0].size_bytes == 6
    rig.captures.close()
    assert rig.captures.find("req_of_key_2") is None


async def test_turned_on_again_it_lasts_from_then_and_the_first_end_is_forgotten() -> None:
    rig = Rig()
    rig.captures.begin("key_1", 60.0)
    rig.pass_time(50.0)
    rig.captures.begin("key_1", 60.0)
    await rig.request()
    rig.pass_time(59.0)
    assert rig.captures.find("req_1") is not None
    rig.pass_time(1.0)
    assert rig.captures.find("req_1") is None


async def test_a_long_prompt_and_a_long_answer_are_cut_and_reach_the_other_side_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PART_BYTES", 4)
    rig = Rig()
    rig.captures.begin("key_1", 60.0)
    await rig.request(pieces=[b"long", b"er"], answer=[b"an", b"swer"])
    found = rig.captures.find("req_1")
    assert found is not None
    assert (bytes(found.prompt), found.prompt_cut) == (b"long", True)
    assert (bytes(found.answer), found.answer_cut) == (b"answ", True)


async def test_the_oldest_makes_room_where_there_are_too_many_bytes_or_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    rig.captures.begin("key_1", 60.0)
    for number in range(MAX_REQUESTS + 1):
        await rig.request(f"req_{number}")
    assert rig.captures.find("req_0") is None
    assert rig.captures.states()[0].requests == MAX_REQUESTS
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 100)
    await rig.request("req_last", answer=[b"x" * 50])
    [state] = rig.captures.states()
    assert state.size_bytes <= 100
    assert rig.captures.find("req_last") is not None
    # One alone that is larger than all may be ends itself, and its caller notices nothing.
    await rig.request("req_huge", answer=[b"y" * 500])
    assert rig.captures.find("req_huge") is None
    assert rig.captures.states()[0].size_bytes <= 100


async def test_a_form_and_a_websocket_are_not_captured() -> None:
    rig = Rig()
    rig.captures.begin("key_1", 60.0)
    await rig.request("req_form", headers=[(b"content-type", b"Multipart/form-data; boundary=x")])
    await rig.request("req_socket", websocket_key=b"x")
    assert rig.captures.states()[0].requests == 0


def test_neither_too_many_keys_nor_too_long_a_time_is_taken() -> None:
    rig = Rig()
    for number in range(MAX_KEYS):
        rig.captures.begin(f"key_{number}", 60.0)
    with pytest.raises(RequestError, match="turn one off"):
        rig.captures.begin("one_more", 60.0)
    rig.captures.begin("key_0", 60.0)
    assert rig.captures.begin("key_1", 1e9) == pytest.approx(1.8e9 + 100.0 + MAX_CAPTURE_S)
