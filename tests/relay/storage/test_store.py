"""The contract that every `Store` keeps, on each kind."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness.stores import OpenStore
from wai_protocol.errors import StoreError
from wai_relay.storage import ConflictError, RefusedError, Store, Write

pytestmark = pytest.mark.anyio


def setting(name: str, value: str = "1") -> Write:
    return Write(
        "INSERT INTO settings (name, value, changed_at) VALUES ($1, $2, $3)", (name, value, 0.0)
    )


async def names(store: Store) -> list[str]:
    rows = await store.read("SELECT name FROM settings ORDER BY name")
    return [row["name"] for row in rows]


async def test_what_was_written_is_there_after_a_restart(
    store: Store, open_store: OpenStore
) -> None:
    await store.write(setting("a"), setting("b"))
    await store.close()
    again = await open_store()
    assert await names(again) == ["a", "b"]
    await again.close()


async def test_a_read_sees_every_write_that_was_awaited(store: Store) -> None:
    for number in range(20):
        await store.write(setting(f"{number:02}"))
        rows = await store.read("SELECT count(*) AS n FROM settings")
        assert rows == [{"n": number + 1}]


async def test_a_transaction_whose_second_half_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(ConflictError):
        await store.write(setting("a"), setting("a"))
    with pytest.raises(ConflictError):
        await store.write(setting("b"), Write("DELETE FROM settings WHERE name = 'x'", (), rows=1))
    assert await names(store) == []


async def test_a_failed_transaction_takes_no_other_of_its_batch_with_it(store: Store) -> None:
    await store.write(setting("a"))
    outcomes = await asyncio.gather(
        *(store.write(setting(name)) for name in ("b", "a", "c", "a", "d")),
        return_exceptions=True,
    )
    assert [isinstance(outcome, ConflictError) for outcome in outcomes] == [
        *(False, True, False, True, False)
    ]
    assert await names(store) == ["a", "b", "c", "d"]


async def test_the_number_of_rows_is_that_of_one_statement(store: Store) -> None:
    await store.write(setting("a"), setting("b"))
    changed = "UPDATE settings SET value = $1 WHERE name = $2"
    await store.write(Write(changed, ("2", "a"), rows=1), Write(changed, ("2", "x"), rows=0))
    with pytest.raises(ConflictError):
        await store.write(Write(changed, ("3", "a"), rows=1), Write(changed, ("3", "x"), rows=1))
    rows = await store.read("SELECT name, value FROM settings ORDER BY name")
    assert rows == [{"name": "a", "value": "2"}, {"name": "b", "value": "1"}]


@pytest.mark.parametrize("value", [1 << 70, "\ud800"], ids=["long integer", "surrogate"])
async def test_a_value_that_cannot_be_stored_does_not_stop_the_writer(
    store: Store, value: int | str
) -> None:
    put = "INSERT INTO audit_log (id, at, actor, action, subject) VALUES ($1, 0, '', $2, '')"
    values = (value, "") if isinstance(value, int) else (1, value)
    with pytest.raises(RefusedError):
        await store.write(Write(put, values))
    await store.write(setting("b"))
    assert await names(store) == ["b"]


async def test_a_statement_that_is_wrong_does_not_stop_the_writer(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.write(Write("INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(StoreError):
        await store.read("SELECT nothing FROM nowhere")
    await store.write(setting("b"))
    assert await names(store) == ["b"]


async def test_what_was_submitted_is_written_in_order_before_the_store_closes(
    store: Store, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(700):
        store.submit(setting(f"{number:03}"))
    store.submit(setting("000"))
    for number in range(20):
        last = "UPDATE settings SET value = $1 WHERE name = '000'"
        store.submit(Write(last, (str(number),)))
    await store.close()
    assert "was not written" in caplog.text
    again = await open_store()
    assert len(await names(again)) == 700
    rows = await again.read("SELECT value FROM settings WHERE name = '000'")
    assert rows == [{"value": "19"}]
    await again.close()


async def test_a_cancelled_write_that_had_not_begun_is_left_out(store: Store) -> None:
    first = asyncio.ensure_future(store.write(setting("a")))
    second = asyncio.ensure_future(store.write(setting("b")))
    await asyncio.sleep(0)
    await first
    second.cancel()
    await asyncio.wait((second,))
    await store.write(setting("c"))
    assert set(await names(store)) >= {"a", "c"}


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.write(setting("a"))
    with pytest.raises(StoreError, match="closed"):
        await store.read("SELECT 1")


async def test_what_comes_back_has_the_types_that_went_in(store: Store) -> None:
    await store.write(
        Write(
            "INSERT INTO nodes (id, name, public_key, created_at) VALUES ($1, $2, $3, $4)",
            ("n", "Zürich 🚀", b"\0\xff", 1.5),
        ),
        Write("INSERT INTO usage_batches (id) VALUES ('x')"),
    )
    [row] = await store.read("SELECT name, public_key, created_at, removed_at FROM nodes")
    assert row == {
        "name": "Zürich 🚀",
        "public_key": b"\0\xff",
        "created_at": 1.5,
        "removed_at": None,
    }
    [sums] = await store.read("SELECT sum(number) AS whole, count(*) AS n FROM usage_batches")
    assert sums == {"whole": 1, "n": 1}
    assert type(sums["whole"]) is int


async def test_text_is_ordered_byte_by_byte(store: Store) -> None:
    await store.write(*(setting(name) for name in ("b", "B", "a", "ä", "_", "-", "Z")))
    assert await names(store) == ["-", "B", "Z", "_", "a", "b", "ä"]
