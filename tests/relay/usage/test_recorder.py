"""What requests cost, from the record to the report, on a real store and a clock that is moved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness.stores import OpenStore
from wai_api.usage import Grouping
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import Store
from wai_relay.usage import UsageRecorder, UsageReport
from wai_relay.usage.recorder import BATCH_RECORDS, FLUSH_INTERVAL_S, MAX_MODELS
from wai_relay.usage.rollups import DAY_S, HOUR_S

pytestmark = pytest.mark.anyio

NOON = 1_795_435_200.0  # 2026-11-23 12:00 UTC


@dataclass
class Time:
    """A wall clock and its timers; both stand still until moved."""

    now: float = NOON
    jumped: float = 0.0
    timers: list[Due] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - self.jumped

    def jump(self, seconds: float) -> None:
        """The wall clock is set; no time passes."""
        self.now += seconds
        self.jumped += seconds
        for timer in self.timers:
            timer.at += seconds

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Due:
        self.timers.append(Due(self.now + delay_s, call))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now]
        self.timers = [timer for timer in self.timers if timer.at > self.now]
        for timer in due:
            if not timer.cancelled:
                timer.call()


@dataclass(eq=False)
class Due:
    at: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Books:
    store: Store
    time: Time
    recorder: UsageRecorder
    report: UsageReport
    retention_s: float = 30.0 * DAY_S

    async def settle(self) -> None:
        """Wait for what was handed over: the store does one thing after the other."""
        await self.recorder._delivery.wait()
        await self.store.write()

    async def rows(self, table: str) -> list[dict[str, Any]]:
        await self.settle()
        return await self.store.read(f"SELECT * FROM {table}")

    async def today(self, by: Any = "model", **only: Any) -> list[Any]:
        await self.settle()
        begin = self.time.now // DAY_S * DAY_S
        return await self.report.usage(by, begin, begin + DAY_S, **only)


@pytest.fixture
async def books(store: Store, tmp_path: Path) -> AsyncIterator[Books]:
    time = Time()
    recorder = await UsageRecorder.load(
        *(store, lambda: 30.0 * DAY_S, tmp_path),
        wall_clock=time,
        clock=time.monotonic,
        call_later=time.call_later,
    )
    yield Books(store, time, recorder, UsageReport(store))
    await recorder.close()


def record(**fields: Any) -> RequestRecord:
    tokens = TokenCounts(
        fields.pop("prompt", 10),
        fields.pop("cached", 0),
        fields.pop("completion", 5),
        fields.pop("exact", True),
    )
    known: dict[str, Any] = {
        "request_id": "req_1",
        "started_at": NOON,
        "method": "POST",
        "path": "/v1/chat/completions",
        "key_id": "key_1",
        "model": "m",
        "served_model": "m",
        "node": "box",
        "status": 200,
        "attempts": 1,
        "tokens": tokens,
        "ttft_ms": 100.0,
        "stream": True,
        "duration_ms": 500.0,
    }
    return RequestRecord(**known | fields)


async def test_nothing_is_later_than_half_a_second(books: Books) -> None:
    books.recorder.finish(record())
    assert await books.rows("usage_requests") == []
    books.time.advance(FLUSH_INTERVAL_S)
    (row,) = await books.rows("usage_requests")
    assert (row["prompt_tokens"], row["completion_tokens"], row["exact"]) == (10, 5, 1)
    assert (row["ttft_ms"], row["tokens_per_s"]) == (100.0, 10.0)


async def test_many_requests_do_not_wait_for_the_timer(books: Books) -> None:
    for _ in range(BATCH_RECORDS):
        books.recorder.finish(record())
    assert len(await books.rows("usage_requests")) == BATCH_RECORDS


async def test_an_orderly_stop_loses_nothing(books: Books, open_store: OpenStore) -> None:
    books.recorder.finish(record())
    await books.recorder.close()
    await books.store.close()
    again = await open_store()
    assert await again.read("SELECT count(*) AS n FROM usage_requests") == [{"n": 1}]
    await again.close()


async def test_each_token_of_a_month_is_either_stored_or_not(books: Books) -> None:
    await books.store.write()
    books.recorder.finish(record(key_id="key_1"))
    assert books.recorder.tokens_of_month("key_1") == (15, 0)
    books.time.advance(FLUSH_INTERVAL_S)
    await books.settle()
    assert books.recorder.tokens_of_month("key_1") == (0, 15)
    books.recorder.finish(record(key_id="key_1", prompt=1, completion=1))
    await books.recorder.catch_up()  # what others stored is neither
    assert books.recorder.tokens_of_month("key_1") == (0, 17)
    assert books.recorder.tokens_of_month("key_2") == (0, 0)
    books.time.jump(40 * DAY_S)
    assert books.recorder.tokens_of_month("key_1") == (0, 0)


async def test_rollups_agree_with_the_raw_rows(books: Books) -> None:
    for hour in range(50):
        books.recorder.finish(
            record(
                started_at=NOON + hour * HOUR_S + hour,
                node=("box", "mac")[hour % 2],
                key_id=f"key_{hour % 3}",
                cached=hour,
                cancelled=hour % 7 == 0,
            )
        )
    books.recorder.flush()
    names = ("prompt_tokens", "cached_tokens", "completion_tokens", "cancelled")
    raw = await books.rows("usage_requests")
    expected = [len(raw)] + [sum(row[name] for row in raw) for name in names]
    for span in ("hour", "day"):
        rows = [row for row in await books.rows("usage_rollups") if row["span"] == span]
        assert [sum(row[name] for row in rows) for name in ("requests", *names)] == expected
        bins = [row for row in await books.rows("usage_ttft") if row["span"] == span]
        assert sum(row["requests"] for row in bins) == len(raw)


async def test_report_sums_by_each_grouping(books: Books) -> None:
    books.recorder.finish(record(node="box", prompt=1))
    books.recorder.finish(record(node="mac", prompt=2, key_id="key_2"))
    books.recorder.finish(record(node="mac", prompt=4, model="n", started_at=NOON + HOUR_S))
    books.recorder.flush()

    async def prompts(by: str, **only: str) -> dict[str, int]:
        return {row.group: row.prompt_tokens for row in await books.today(by, **only)}

    assert await prompts("node") == {"mac": 6, "box": 1}
    assert await prompts("key") == {"key_1": 5, "key_2": 2}
    assert await prompts("model") == {"m": 3, "n": 4}
    assert await prompts("day") == {"2026-11-23": 7}
    assert await prompts("hour") == {"2026-11-23T12:00Z": 3, "2026-11-23T13:00Z": 4}
    assert await prompts("model", node="mac", key="key_2") == {"m": 2}


@pytest.mark.parametrize("most", [1, 2, 3, 9])
async def test_the_most_used_and_the_rest_add_up_to_all(books: Books, most: int) -> None:
    for n in range(1, 4):
        for _ in range(n):
            books.recorder.finish(record(key_id=f"key_{n}", prompt=n, ttft_ms=10.0**n))
    books.recorder.flush()
    whole = await books.today("key")
    begin = books.time.now // DAY_S * DAY_S
    top = await books.report.top("key", begin, begin + DAY_S, most)
    assert top.rows == whole[:most]
    left = whole[most:]
    assert top.other_groups == len(left)
    if not left:
        assert top.others is None
        return
    assert top.others is not None
    for name in ("requests", "prompt_tokens", "completion_tokens", "cost"):
        assert getattr(top.others, name) == sum(getattr(row, name) for row in left)
    assert top.others.ttft_p99_ms == max(row.ttft_p99_ms for row in left)


async def test_a_time_that_begins_inside_a_day_counts_its_hours_once(books: Books) -> None:
    for hour in range(72):
        books.recorder.finish(record(started_at=NOON + hour * HOUR_S))
    books.recorder.flush()
    await books.settle()
    for since, until in ((0, 72), (5, 70), (13, 14), (12, 36), (11, 37)):
        groupings: tuple[Grouping, ...] = ("model", "day", "hour")
        for by in groupings:
            rows = await books.report.usage(
                by,
                NOON + since * HOUR_S,
                NOON + until * HOUR_S,
            )
            assert sum(row.requests for row in rows) == until - since


async def test_quantiles_and_speed_come_from_what_was_added_up(books: Books) -> None:
    for n in range(100):
        books.recorder.finish(record(ttft_ms=3000.0 if n >= 98 else 50.0, duration_ms=4000.0))
        books.recorder.flush()
    (row,) = await books.today()
    assert row.ttft_p50_ms == pytest.approx(50.0, rel=0.1)
    assert row.ttft_p99_ms == pytest.approx(3000.0, rel=0.1)
    tokens, seconds = 100 * 4, (98 * 3950 + 2 * 1000) / 1000
    assert row.tokens_per_s == pytest.approx(tokens / seconds)


async def test_a_cancelled_request_is_no_error_and_an_estimate_is_called_one(books: Books) -> None:
    books.recorder.finish(record(cancelled=True, status=200, exact=False))
    books.recorder.finish(record(status=503, fault="no_node_available", attempts=0))
    books.recorder.finish(record(status=200, fault="node_lost", attempts=2, fallback=True))
    books.recorder.flush()
    (row,) = await books.today("key")
    assert (row.requests, row.cancelled, row.errors) == (3, 1, 2)
    assert (row.estimated, row.retried, row.fallbacks) == (1, 1, 1)


async def test_made_up_model_names_are_not_counted_apart(books: Books) -> None:
    books.recorder.finish(record(model="m"))
    for n in range(20):
        books.recorder.finish(record(model=f"made-up-{n}", status=404, attempts=0, node=""))
    books.recorder.finish(record(model="m", status=429, attempts=0, node=""))
    books.recorder.flush()
    assert {row.group: row.requests for row in await books.today()} == {"m": 2, "": 20}


async def test_a_node_that_makes_up_models_fills_the_bound_only(books: Books) -> None:
    for n in range(MAX_MODELS + 50):
        books.recorder.finish(record(model=f"m{n}"))
    books.recorder.flush()
    assert len(await books.today()) == MAX_MODELS + 1


async def test_requests_without_a_key_have_no_raw_rows(books: Books) -> None:
    books.recorder.finish(record(key_id="", status=401, attempts=0, node="", model=""))
    books.recorder.flush()
    assert await books.rows("usage_requests") == []
    assert [(row.group, row.errors) for row in await books.today("key")] == [("", 1)]


async def test_raw_rows_go_when_their_time_is_over_and_sums_stay(books: Books) -> None:
    books.recorder.finish(record())
    books.time.advance(29 * DAY_S)
    assert len(await books.rows("usage_requests")) == 1
    books.time.advance(2 * DAY_S)
    assert await books.rows("usage_requests") == []
    assert len(await books.rows("usage_rollups")) == 2
    books.time.advance(400 * DAY_S)
    assert [row["span"] for row in await books.rows("usage_rollups")] == ["day"]
    assert [row["span"] for row in await books.rows("usage_ttft")] == ["day"]


async def test_months_tokens_are_known_at_once_and_after_a_restart(books: Books) -> None:
    books.recorder.finish(record(prompt=10, completion=5))
    assert books.recorder.months.of("key_1", books.time.now) == 15
    books.recorder.flush()
    await books.settle()
    again = await UsageRecorder.load(
        books.store, lambda: DAY_S, wall_clock=books.time, call_later=books.time.call_later
    )
    assert again.months.of("key_1", books.time.now) == 15
    assert again.months.of("key_2", books.time.now) == 0
    books.time.advance(8 * DAY_S)  # December
    assert again.months.of("key_1", books.time.now) == 0
    again.finish(record(started_at=NOON))  # it began in November
    assert again.months.of("key_1", books.time.now) == 0
    await again.close()


async def test_usage_that_the_old_relay_still_writes_counts_for_the_month(books: Books) -> None:
    before = books.recorder
    before.finish(record(prompt=10, completion=5))
    await before.settle()
    ours = await UsageRecorder.load(
        books.store, lambda: DAY_S, wall_clock=books.time, call_later=books.time.call_later
    )
    ours.finish(record(prompt=100, completion=0))
    before.finish(record(prompt=1, completion=2))
    before.finish(record(prompt=7, completion=0, key_id="key_2"))
    await before.settle()
    for _ in range(2):  # however often one looks
        await ours.catch_up()
        assert ours.months.of("key_1", books.time.now) == 118
        assert ours.months.of("key_2", books.time.now) == 7
    ours.finish(record(prompt=1000, completion=0))
    before.finish(record(prompt=0, completion=4))
    await before.settle()
    assert ours.months.of("key_1", books.time.now) == 1118
    await ours.catch_up()
    assert ours.months.of("key_1", books.time.now) == 1122
    books.time.advance(8 * DAY_S)  # December
    await ours.catch_up()
    assert ours.months.of("key_1", books.time.now) == 0
    await ours.close()


@pytest.mark.parametrize("written", [False, True], ids=["held", "written"])
async def test_a_correction_changes_the_stored_usage(books: Books, *, written: bool) -> None:
    gone = record(prompt=20, completion=3, exact=False, cancelled=True)
    for each in (record(request_id="req_2", prompt=1, completion=1), gone):
        books.recorder.finish(each)
    if written:
        books.recorder.flush()
    books.recorder.correct(gone, TokenCounts(12, 4, 7, exact=True))
    books.recorder.flush()
    (row,) = await books.today()
    sums = (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens)
    assert sums == (2, 13, 4, 8)
    assert (row.estimated, row.cancelled) == (0, 1)
    rows = {raw["request_id"]: raw for raw in await books.rows("usage_requests")}
    raw = rows["req_1"]
    tokens = (raw["prompt_tokens"], raw["cached_tokens"], raw["completion_tokens"])
    assert (*tokens, raw["exact"]) == (12, 4, 7, 1)
    assert rows["req_2"]["prompt_tokens"] == 1
    assert books.recorder.months.of("key_1", books.time.now) == 21
    await books.recorder.catch_up()
    assert books.recorder.months.of("key_1", books.time.now) == 21


async def test_a_correction_that_comes_before_the_record_is_in_it(books: Books) -> None:
    gone = record(prompt=20, completion=3, exact=False)
    books.recorder.correct(gone, TokenCounts(12, 0, 7, exact=True))
    books.recorder.finish(gone)
    books.recorder.flush()
    (row,) = await books.today()
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 12, 7)
    assert books.recorder.months.of("key_1", books.time.now) == 19
