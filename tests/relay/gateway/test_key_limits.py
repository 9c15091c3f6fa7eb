"""A key's limits as its callers meet them: from the head on, and said so that SDKs obey."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.harness.exchanges import FakeExchange, make_request
from tests.harness.fleets import JSON, FakeFleet, FakeNode
from tests.harness.limit_judge import LimitJudge
from tests.harness.plain_dispatcher import LeastBusyDispatcher
from wai_api.limits import KeyLimits
from wai_protocol.errors import AuthError, Fault, RequestError, WaiError
from wai_protocol.surface import Headers
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import RequestRecord
from wai_relay.gateway.body_budget import BodyBudget
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.gateway import Gateway
from wai_relay.gateway.intake import LEAST_BYTES_PER_S, MOST_BEHIND_S, Intake
from wai_relay.gateway.limits import KIB, MIB, GatewayLimits
from wai_relay.policy.admission import Admission
from wai_relay.policy.months import MonthTokens, month_of
from wai_relay.policy.shared_admission import SharedAdmission

from .test_gateway import CHAT, MODEL, Clock, answers

pytestmark = pytest.mark.anyio

NOW = 1_795_435_200.0  # 2026-11-23 12:00 UTC
REPLY = b'{"choices":[{}],"usage":{"prompt_tokens":9,"completion_tokens":91}}'


class Keys:
    """Several keys, each by its own secret."""

    def __init__(self, **limits: KeyLimits) -> None:
        self.keys = {
            name.encode(): ApiKey(f"key_{name}", name, b"", "wai_sk_", given, 1, 0.0)
            for name, given in limits.items()
        }

    def authenticate(self, headers: Headers) -> ApiKey:
        secret = dict(headers).get(b"authorization", b"").removeprefix(b"Bearer ")
        if secret not in self.keys:
            raise AuthError("unknown", Fault.KEY_INVALID)
        return self.keys[secret]


class Rig:
    def __init__(self, *, limits: GatewayLimits | None = None, **keys: KeyLimits) -> None:
        self.months = MonthTokens(NOW)
        self.node = FakeNode("gpu1", MODEL, script=answers(200, JSON, REPLY))
        self.clock = Clock()
        fleet = FakeFleet(self.node)
        self.gateway = Gateway(
            Keys(**keys),
            fleet,
            LeastBusyDispatcher(fleet),
            self,
            limits,
            admission=Admission(self.months),
            clock=self.clock,
            wall_clock=lambda: NOW,
            call_later=self.clock.call_later,
        )

    def finish(self, record: RequestRecord) -> None:
        self.months.add(record.key_id, record.started_at, record.tokens.total)

    async def ask(self, key: str = "a", **fields: Any) -> FakeExchange:
        body = json.dumps(json.loads(CHAT) | fields).encode()
        exchange = caller(key, body)
        await self.gateway.handle(exchange)
        return exchange


def caller(key: str, *pieces: bytes, stays_open: bool = False, **request: Any) -> FakeExchange:
    headers = [(b"authorization", b"Bearer " + key.encode())]
    return FakeExchange(make_request(headers=headers, **request), pieces, stays_open=stays_open)


def code_of(exchange: FakeExchange) -> str:
    return str(json.loads(exchange.body)["error"]["code"])


async def test_uploads_count_for_concurrency_and_rpm_before_their_bodies_are_there() -> None:
    r = Rig(a=KeyLimits(concurrency=1, rpm=2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller("a", CHAT[:9], stays_open=True))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        refused = await r.ask()
        assert (refused.status, code_of(refused)) == (429, "rate_limit_exceeded")
        tasks.cancel_scope.cancel()
    assert (await r.ask()).status == 200  # the slot is free again
    refused = await r.ask()
    assert (refused.status, refused.header(b"retry-after")) == (429, b"60")


async def test_a_spent_month_says_when_the_next_begins_and_that_sdks_must_not_retry() -> None:
    r = Rig(a=KeyLimits(monthly_tokens=1000))
    r.months.add("key_a", NOW, 1000)
    refused = await r.ask()
    assert (refused.status, code_of(refused)) == (429, "insufficient_quota")
    assert refused.header(b"retry-after") == b"%d" % (month_of(NOW)[1] - NOW)
    assert refused.header(b"x-should-retry") == b"false"


@pytest.mark.parametrize("limits", [KeyLimits(tpm=5000), KeyLimits(monthly_tokens=5000)])
async def test_a_request_that_never_fits_is_not_to_be_retried(limits: KeyLimits) -> None:
    refused = await Rig(a=limits).ask(max_tokens=6000)
    assert refused.status == 429
    assert refused.header(b"retry-after") is None
    assert refused.header(b"x-should-retry") == b"false"
    assert "Lower `max_tokens`" in json.loads(refused.body)["error"]["message"]


async def test_what_passes_by_itself_may_be_retried() -> None:
    r = Rig(a=KeyLimits(rpm=1))
    await r.ask()
    assert (await r.ask()).header(b"x-should-retry") is None


async def test_what_a_request_took_counts_and_its_reservation_ends() -> None:
    r = Rig(a=KeyLimits(tpm=1000, monthly_tokens=10_000))
    for _ in range(9):
        assert (await r.ask(max_tokens=100)).status == 200
    left = await r.ask(max_tokens=50)
    assert left.header(b"x-ratelimit-remaining-tokens") == b"0"
    r.clock.advance(61)
    answered = await r.ask()  # without a limit it may take all that is left, and is served
    assert answered.status == 200
    assert r.months.of("key_a", NOW) == 1100


class Judged:
    """A key's limits at one of several relays. `verdicts`: what its requests wait with."""

    def __init__(self, r: Rig) -> None:
        self.verdicts: list[asyncio.Future[None]] = []
        self.admission = SharedAdmission(self._new, months=r.months)
        r.gateway._admission = self.admission

    def _new(self) -> asyncio.Future[None]:
        self.verdicts.append(asyncio.get_running_loop().create_future())
        return self.verdicts[-1]


async def test_a_request_goes_on_when_the_judge_of_all_relays_lets_it() -> None:
    r = Rig(a=KeyLimits(rpm=1))
    judged, judge = Judged(r), LimitJudge()
    async with anyio.create_task_group() as tasks:
        first, second = caller("a", CHAT), caller("a", CHAT)
        tasks.start_soon(r.gateway.handle, first)
        tasks.start_soon(r.gateway.handle, second)
        while len(judged.verdicts) < 2:
            await anyio.lowlevel.checkpoint()
        assert not first.status
        now = r.clock()
        while judged.admission.has_something_to_ask:
            asks = judged.admission.asks(now)
            judged.admission.hear(asks, judge.exchange("relay", asks, now), now, now, NOW)
    assert (first.status, second.status) == (200, 429)
    assert second.header(b"x-ratelimit-remaining-requests") == b"0"


async def test_a_caller_that_goes_away_while_it_waits_takes_nothing() -> None:
    r = Rig(a=KeyLimits(concurrency=1))
    judged, judge = Judged(r), LimitJudge()
    now = r.clock()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(r.gateway.handle, caller("a", CHAT))
        while not judged.verdicts:
            await anyio.lowlevel.checkpoint()
        asks = judged.admission.asks(now)
        tasks.cancel_scope.cancel()
    judged.admission.hear(asks, judge.exchange("relay", asks, now), now, now, NOW)
    assert judge.total("key_a", now).slots == 1  # until it is told
    asks = judged.admission.asks(now)
    judged.admission.hear(asks, judge.exchange("relay", asks, now), now, now, NOW)
    assert judge.total("key_a", now).slots == 0


def test_one_key_holds_no_more_of_the_bodies_budget_than_it_leaves_free() -> None:
    budget = BodyBudget(900)
    budget.take("a", 450)
    with pytest.raises(WaiError) as caught:
        budget.take("a", 1)
    assert caught.value.fault is Fault.OVERLOADED
    budget.take("b", 225)  # and so on: there is always room for one more
    with pytest.raises(WaiError):
        budget.take("b", 1)
    budget.take("c", 112)
    budget.give("a", 450)
    budget.take("b", 100)
    for key, held in (("b", 325), ("c", 112)):
        budget.give(key, held)
    assert (budget.held_bytes, dict(budget._held)) == (0, {})


async def test_slow_uploads_of_one_key_leave_room_for_another() -> None:
    r = Rig(a=KeyLimits(), b=KeyLimits(), limits=GatewayLimits(held_total_bytes=4 * MIB))
    async with anyio.create_task_group() as tasks:
        for _ in range(9):
            piece = b'{"messages":"' + b"x" * (MIB // 2)
            tasks.start_soon(r.gateway.handle, caller("a", piece, stays_open=True))
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert (await r.ask("b")).status == 200
        tasks.cancel_scope.cancel()
    assert r.gateway._budget.held_bytes == 0


class SlowExchange(FakeExchange):
    """Each piece comes some seconds after the last."""

    def __init__(self, clock: Clock, seconds: float, *pieces: bytes) -> None:
        super().__init__(make_request(), pieces)
        self.clock = clock
        self.seconds = seconds

    async def read(self) -> bytes:
        self.clock.now += self.seconds
        return await super().read()


def intake(exchange: FakeExchange, clock: Clock) -> Intake:
    route = DIALECTS.find_route("POST", "/v1/chat/completions")
    assert route is not None
    dialect = DIALECTS.of(route.path)
    return Intake(exchange, dialect, route, "key", GatewayLimits(), BodyBudget(64 * MIB), clock)


@pytest.mark.parametrize(("seconds", "size"), [(1.0, 1), (59.0, 1), (50.0, 40 * KIB)])
async def test_a_body_that_trickles_is_refused_however_it_began(seconds: float, size: int) -> None:
    clock = Clock()
    pieces = [b" " * MIB, *([b" " * size] * 100)]
    late = SlowExchange(clock, seconds, *pieces)
    with pytest.raises(RequestError) as caught:
        await intake(late, clock).take()
    assert caught.value.fault is Fault.TIMED_OUT
    assert clock.now - 1000.0 <= 10 * (MOST_BEHIND_S + seconds)


async def test_a_body_that_pauses_once_or_comes_at_the_least_rate_is_taken() -> None:
    clock = Clock()
    body = CHAT + b" " * (100 * LEAST_BYTES_PER_S)
    pieces = [body[at : at + LEAST_BYTES_PER_S] for at in range(0, len(body), LEAST_BYTES_PER_S)]
    steady = SlowExchange(clock, 1.0, *pieces)
    assert (await intake(steady, clock).take()).facts.model == "m"
    paused = SlowExchange(clock, 55.0, body)
    assert (await intake(paused, clock).take()).facts.model == "m"


@pytest.mark.parametrize(
    "limits", [KeyLimits(tpm=195), KeyLimits(monthly_tokens=195)], ids=["minute", "month"]
)
async def test_the_last_request_of_a_key_reserves_the_chat_template_too(limits: KeyLimits) -> None:
    rig = Rig(a=limits)
    first = await rig.ask(max_tokens=91)  # 9 of prompt, most of which are the template's
    assert first.status == 200
    second = await rig.ask(max_tokens=91)  # 95 are left
    assert second.status == 429
    assert (await rig.ask(max_tokens=86)).status == 200
