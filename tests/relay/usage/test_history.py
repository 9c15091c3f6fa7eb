"""The finished requests: what is asked for is found, page by page, and nothing else."""

from __future__ import annotations

import pytest

from wai_relay.contracts.records import RequestRecord
from wai_relay.storage import Store
from wai_relay.usage import HistoryFilter, RequestHistory
from wai_relay.usage.rollups import writes_for

pytestmark = pytest.mark.anyio


def _request(number: int, **fields: object) -> RequestRecord:
    record = RequestRecord(f"req_{number}", 1000.0 + number, "POST", "/v1/chat/completions")
    record.key_id, record.model, record.node, record.status = "key_a", "m", "box", 200
    record.duration_ms, record.ttft_ms = 900.0, 100.0
    for name, value in fields.items():
        setattr(record, name, value)
    return record


REQUESTS = (
    _request(0),
    _request(1, status=500, fault="upstream_failed"),
    _request(2, status=499, cancelled=True),
    _request(3, ttft_ms=7000.0, key_id="key_b"),
    _request(4, ttft_ms=None, duration_ms=9000.0, node="other", status=504, fault="timeout"),
    _request(5, served_model="big", fault="interrupted"),
    _request(6, started_at=1000.0),  # began with the first, ended last
    _request(7, key_id=""),  # without a valid key: not kept
)


@pytest.fixture
async def history(store: Store) -> RequestHistory:
    await store.write(*writes_for((record, record.model) for record in REQUESTS))
    return RequestHistory(store)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (HistoryFilter(), [5, 4, 3, 2, 1, 6, 0]),
        (HistoryFilter(failed=True), [5, 4, 1]),
        (HistoryFilter(failed=False), [3, 2, 6, 0]),
        (HistoryFilter(slow_ms=7000), [4, 3]),
        (HistoryFilter(key="key_b"), [3]),
        (HistoryFilter(node="other"), [4]),
        (HistoryFilter(status=499), [2]),
        (HistoryFilter(model="big"), [5]),
        (HistoryFilter(model="m", failed=True, until=1004.0), [1]),
        (HistoryFilter(since=1004.0), [5, 4]),
        (HistoryFilter(key="' OR 1=1 --"), []),
    ],
)
async def test_a_filter_finds_what_it_says(
    history: RequestHistory, wanted: HistoryFilter, found: list[int]
) -> None:
    page = await history.page(wanted, 100)
    assert [request.id for request in page] == [f"req_{number}" for number in found]


async def test_pages_hold_each_request_once_whatever_comes_meanwhile(
    history: RequestHistory, store: Store
) -> None:
    seen: list[str] = []
    before = None
    for number in range(10, 14):
        page = await history.page(HistoryFilter(), 2, before=before)
        seen += [request.id for request in page]
        before = page[-1].number
        await store.write(*writes_for([(_request(number), "m")]))
    assert seen == [f"req_{number}" for number in (5, 4, 3, 2, 1, 6, 0)]


async def test_one_request_is_found_by_its_id(history: RequestHistory) -> None:
    found = await history.find("req_4")
    assert found is not None
    assert (found.node, found.status, found.ttft_ms) == ("other", 504, None)
    assert await history.find("req_7") is None


async def test_the_past_is_told_for_the_hours_figures(history: RequestHistory) -> None:
    past = await history.past(1003.0, 100)
    assert [one.began_at for one in past] == [1005.0, 1004.0, 1003.0]
    assert [one.failed for one in past] == [True, True, False]
    assert past[1] == (1004.0, "other", None, 9000.0, 0, 0, 504, True, False)
    assert len(await history.past(0.0, 2)) == 2
