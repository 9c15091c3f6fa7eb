"""The judge in PostgreSQL says what the model says, answer by answer, and keeps its promises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.limit_judge import LimitJudge, without_times
from tests.harness.limited_fleet import START
from wai_relay.policy.grants import Amounts, Ask, Reply, Wish
from wai_relay.storage.postgres_address import PostgresAddress, connect

CLOCK = """
CREATE TABLE test_clock (now DOUBLE PRECISION NOT NULL);
INSERT INTO test_clock VALUES (0);
CREATE OR REPLACE FUNCTION limit_now() RETURNS DOUBLE PRECISION LANGUAGE sql VOLATILE AS
$$ SELECT now FROM test_clock $$;
"""
EMPTY = "TRUNCATE limit_holders, limit_shares, limit_uses, limit_contended, usage_rollups"
STORED = (
    "INSERT INTO usage_rollups"
    " SELECT 'day', $2, $1, '', '', 1, 0, 0, 0, 0, 0, $3, 0, 0, 0, 0, 0, 0, 0, 0"
    " ON CONFLICT (span, start, key_id, model, node)"
    " DO UPDATE SET prompt_tokens = usage_rollups.prompt_tokens + excluded.prompt_tokens"
)
DAY_S = 86_400


class Database:
    """The judge in PostgreSQL, with a clock that the test sets."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection: asyncpg.Connection = self.run(connect(PostgresAddress(url)))
        self.run(self._connection.execute(CLOCK))

    def run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def execute(self, sql: str, *values: object) -> None:
        self.run(self._connection.execute(sql, *values))

    def value(self, sql: str, *values: object) -> Any:
        return self.run(self._connection.fetchval(sql, *values))

    def exchange(self, me: str, asks: list[Ask], now: float, *, beat: bool = False) -> Reply:
        self.execute("UPDATE test_clock SET now = $1", now)
        text = msgspec.json.encode(asks).decode()
        found = self.value("SELECT limit_exchange($1, $2::jsonb, $3)", me, text, beat)
        return msgspec.json.decode(found, type=Reply)

    def close(self) -> None:
        self.run(self._connection.close())
        self._loop.close()


@contextmanager
def database(url: str) -> Iterator[Database]:
    one = Database(url)
    try:
        yield one
    finally:
        one.close()


def amounts(most: int) -> st.SearchStrategy[Amounts]:
    return st.builds(Amounts, *[st.integers(0, most)] * 4)


LIMIT = st.none() | st.integers(1, 40)
WISH = st.builds(Wish, st.booleans(), st.integers(1, 12), st.integers(1, 30))


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    rpm, tpm, concurrency, monthly = draw(LIMIT), draw(LIMIT), draw(LIMIT), draw(LIMIT)
    limited = Amounts(*(int(one is not None) for one in (concurrency, rpm, tpm, monthly)))

    def of_limited(given: Amounts) -> Amounts:
        return Amounts(*(a * b for a, b in zip(given, limited, strict=True)))

    busy = of_limited(draw(amounts(8)))
    more = of_limited(draw(amounts(10)))
    wishes = draw(st.lists(WISH, max_size=4))
    if tpm is None and monthly is None:
        wishes = [Wish(enters=True, least=0, most=0) for _ in wishes]
    return Ask(
        key_id=draw(st.sampled_from(["key_a", "key_b"])),
        seq=0,
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
        monthly=monthly,
        busy=busy,
        keep=Amounts(*(a + b for a, b in zip(busy, more, strict=True))),
        spare=of_limited(draw(amounts(10))),
        reserved=draw(st.integers(0, 8)),
        unwritten=draw(st.integers(0, 5)),
        spent=draw(st.integers(0, 30)),
        acked=draw(st.integers(0, 10)),
        wishes=tuple(wishes),
    )


STEP = st.tuples(
    st.sampled_from(["relay_1", "relay_2", "relay_3"]),
    st.lists(asks(), max_size=2, unique_by=lambda ask: ask.key_id),
    st.sampled_from([0.01, 0.3, 3.0, 5.9, 6.2, 13.0, 40.0, 80.0, 130.0]),
    st.booleans(),
    st.integers(-3, 1),
    st.sampled_from([0, 0, 0, 7]),
)


def test_the_function_says_what_the_model_says(relay_database: str) -> None:
    with database(relay_database) as real:

        @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(STEP, min_size=1, max_size=25))
        def compare(steps: list[Any]) -> None:
            real.execute(EMPTY)
            model, now, seq = LimitJudge(), START, 0
            for me, given_asks, gap_s, beat, older, stored in steps:
                now += gap_s
                seq += 4
                if stored:
                    model.stored["key_a"] += stored
                    real.execute(STORED, "key_a", int(START // DAY_S * DAY_S), stored)
                told = [msgspec.structs.replace(ask, seq=seq + older) for ask in given_asks]
                expected = model.exchange(me, told, now, beat=beat)
                found = real.exchange(me, told, now, beat=beat)
                assert without_times(found) == without_times(expected)

        compare()


def ask(key_id: str = "key_a", seq: int = 1, **fields: Any) -> Ask:
    given = {
        "rpm": None,
        "tpm": None,
        "concurrency": None,
        "monthly": None,
        "busy": Amounts(),
        "keep": Amounts(),
        "spare": Amounts(),
        "reserved": 0,
        "unwritten": 0,
        "spent": 0,
        "acked": 0,
        "wishes": (),
    }
    return Ask(key_id, seq, **(given | fields))


def test_a_month_is_the_calendars_and_only_this_ones_usage_counts(relay_database: str) -> None:
    enters = (Wish(enters=True, least=0, most=0),)
    with database(relay_database) as real:
        for day in (-30, 0, 40):  # in October, November and January
            real.execute(STORED, "key_a", int(START // DAY_S + day) * DAY_S, 100)
        real.execute(STORED, "key_b", int(START // DAY_S) * DAY_S, 100)
        asked = ask(monthly=101, wishes=enters)
        [answer] = real.exchange("relay_1", [asked], START).answers
        assert (answer.verdicts[0].reason, answer.left[3]) == ("", 1)
        asked = ask(monthly=100, seq=2, wishes=enters)
        [answer] = real.exchange("relay_1", [asked], START).answers
        assert answer.verdicts[0].reason == "month"
        assert answer.verdicts[0].wait_s == 7.5 * DAY_S  # from the 23rd at noon


def test_what_nobody_asks_for_any_more_is_forgotten(relay_database: str) -> None:
    enters = (Wish(enters=True, least=0, most=0),)
    with database(relay_database) as real:
        for holder in ("relay_1", "relay_2"):
            asked = ask(rpm=9, concurrency=9, wishes=enters)
            real.exchange(holder, [asked], START)
        for gone_s in range(200, 350, 5):  # from 200 on, when the database is back
            real.exchange("relay_1", [], START + gone_s)
        real.execute("SELECT limit_tidy()")
        for table in ("limit_uses", "limit_holders WHERE holder = 'relay_2'"):
            assert real.value(f"SELECT count(*) FROM {table}") == 0
        assert real.value("SELECT json_agg(holder) FROM limit_shares") == json.dumps(["relay_1"])


def test_a_key_with_much_usage_is_judged_by_its_index(relay_database: str) -> None:
    with database(relay_database) as real:
        real.execute(
            "INSERT INTO usage_rollups SELECT 'day', $1, 'key_' || n, 'model', 'node',"
            " 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0 FROM generate_series(1, 5000) AS n",
            int(START // DAY_S) * DAY_S,
        )
        real.execute("ANALYZE usage_rollups")
        plan = real.run(
            real._connection.fetch(
                "EXPLAIN SELECT sum(prompt_tokens) FROM usage_rollups"
                " WHERE span = 'day' AND key_id = 'key_7' AND start >= 1 AND start < 2000000000"
            )
        )
        assert "usage_rollups_key" in str(plan)
