"""Usage that the disk does not take for a while: kept, found again, and counted once."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from wai_relay.contracts.records import TokenCounts
from wai_relay.storage import SqliteStore
from wai_relay.usage import UsageRecorder
from wai_relay.usage.batches import Batch, Counted
from wai_relay.usage.delivery import RETRY_S
from wai_relay.usage.pruning import PRUNE_INTERVAL_S, STEADY_S
from wai_relay.usage.rollups import DAY_S, HOUR_S
from wai_relay.usage.spill_file import RESERVED_BYTES, SpillFile

from .test_recorder import NOON, Time, record

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own patience and ours run by the real clock."""
    monkeypatch.setattr("wai_relay.storage.sqlite.BUSY_TIMEOUT_S", 0.1)
    monkeypatch.setattr("wai_relay.usage.delivery.SPILL_AFTER_S", 0.02)
    monkeypatch.setattr("wai_relay.usage.delivery.CLOSE_S", 0.3)


@dataclass
class Relay:
    """What keeps the books in one data folder; `killed` and started again it finds them."""

    folder: Path
    time: Time
    store: SqliteStore
    recorder: UsageRecorder

    @classmethod
    async def start(cls, folder: Path, time: Time) -> Relay:
        store = SqliteStore.open(folder / "relay.db")
        recorder = await UsageRecorder.load(
            *(store, lambda: 30.0 * DAY_S, folder),
            wall_clock=time,
            clock=time.monotonic,
            call_later=time.call_later,
        )
        return cls(folder, time, store, recorder)

    def serve(self, requests: int, first: int = 0) -> None:
        for n in range(first, first + requests):
            self.recorder.finish(record(request_id=f"req_{n}", started_at=self.time.now))

    async def kill(self) -> None:
        """All that a killed process leaves is its files; its locks and its timers are gone."""
        mine = (self.recorder._timer, self.recorder._tick_timer, self.recorder._delivery._retry)
        for timer in filter(None, mine):
            timer.cancel()
        spill_file = self.recorder._spill_file
        assert spill_file is not None
        if spill_file._descriptor is not None:
            os.close(spill_file._descriptor)
        await self.store.close()

    async def stop(self) -> None:
        await self.recorder.close()
        await self.store.close()

    async def go_on(self) -> None:
        """The next try is due."""
        self.time.advance(RETRY_S)
        await self.recorder.settle()

    def served(self) -> tuple[int, int, int]:
        """Rows, different requests among them, and the tokens of the day's sums."""
        with contextmanager(sqlite_of)(self.folder) as database:
            rows = database.execute(
                "SELECT count(*), count(DISTINCT request_id) FROM usage_requests"
            )
            sums = database.execute(
                "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM usage_rollups"
                " WHERE span = 'day'"
            )
            return (*rows.fetchone(), *sums.fetchone())

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("usage-*"))


def sqlite_of(folder: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(folder / "relay.db", isolation_level=None)
    yield database
    database.close()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process holds the database."""
    with contextmanager(sqlite_of)(folder) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    made = await Relay.start(tmp_path, Time())
    yield made
    if not made.store._closed:
        await made.stop()


async def test_a_database_that_is_held_by_another_process_loses_nothing(
    relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wai.usage")
    with held(relay.folder):
        for part in range(5):
            relay.serve(70, first=part * 70)
            await relay.go_on()
        state = relay.recorder.state
        assert (state.unwritten, state.lost, state.behind) == (350, 0, True)
        assert state.word == "waiting for the disk"
        assert relay.served()[0] == 0
    await relay.go_on()
    assert relay.served() == (350, 350, 350 * 15)
    assert relay.recorder.state == (0, 0, False)
    assert len(caplog.messages) == 2  # that it began, and that it is over


@pytest.mark.parametrize("ended", ["killed", "stopped"])
async def test_a_used_up_month_is_used_up_after_a_restart_that_could_not_write(
    relay: Relay, ended: str
) -> None:
    with held(relay.folder):
        relay.serve(20)
        await relay.recorder.settle()
        if ended == "killed":
            await relay.kill()
        else:
            await relay.stop()
    again = await Relay.start(relay.folder, relay.time)
    assert again.recorder.months.of("key_1", again.time.now) == 300
    await again.recorder.settle()
    assert again.served() == (20, 20, 300)
    await again.recorder.catch_up()
    assert again.recorder.months.of("key_1", again.time.now) == 300
    await again.stop()
    assert again.files() == []
    last = await Relay.start(relay.folder, relay.time)
    assert (last.served()[0], last.recorder.state.unwritten) == (20, 0)
    await last.stop()


async def test_a_batch_whose_confirmation_was_lost_counts_once(relay: Relay) -> None:
    counted = record(request_id="req_1")
    batch = Batch([Counted(counted, "m", counted.tokens)])
    await relay.store.write(*batch.writes)
    spill_file = relay.recorder._spill_file
    assert spill_file is not None
    spill_file.append([batch.line()])
    await relay.kill()
    again = await Relay.start(relay.folder, relay.time)
    assert again.recorder.months.of("key_1", again.time.now) == 15
    assert again.recorder.state.unwritten == 0
    await again.recorder.settle()
    assert again.served() == (1, 1, 15)
    await again.stop()


async def test_a_batch_that_was_written_while_its_copy_went_to_the_file_counts_once(
    relay: Relay,
) -> None:
    with held(relay.folder):
        relay.serve(3)
        relay.recorder.flush()
        while relay.recorder._spill_file is None or relay.recorder._spill_file.empty:
            await relay.store.read("SELECT 1")
    await relay.recorder.settle()
    await relay.go_on()
    assert relay.served() == (3, 3, 45)
    assert relay.recorder.state.unwritten == 0
    assert relay.recorder.months.of("key_1", NOON) == 45


async def test_a_correction_that_could_not_be_written_is_kept_too(relay: Relay) -> None:
    gone = record(request_id="req_1", prompt=20, completion=3, exact=False)
    relay.recorder.finish(gone)
    await relay.recorder.settle()
    with held(relay.folder):
        relay.recorder.correct(gone, TokenCounts(12, 0, 7, exact=True))
        await relay.recorder.settle()
        await relay.kill()
    again = await Relay.start(relay.folder, relay.time)
    assert again.recorder.months.of("key_1", NOON) == 19
    await again.recorder.settle()
    assert again.served() == (1, 1, 19)
    await again.stop()


async def test_on_a_full_disk_the_reserve_keeps_what_the_database_does_not_take(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = relay.store._writer.execute("PRAGMA page_count").fetchone()[0]
    relay.store._writer.execute(f"PRAGMA max_page_count = {pages}")
    relay.serve(1000)
    await relay.recorder.settle()
    assert relay.recorder.state.behind
    (name,) = relay.files()
    assert (relay.folder / name).stat().st_size == RESERVED_BYTES
    relay.store._writer.execute(f"PRAGMA max_page_count = {pages * 1000}")
    for _ in range(3):
        await relay.go_on()
    assert relay.served()[:2] == (1000, 1000)


async def test_usage_that_no_disk_accepts_stays_in_memory_up_to_a_bound_and_is_then_lost(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wai_relay.usage.spill_file.MAX_BYTES", 0)
    monkeypatch.setattr("wai_relay.usage.delivery.MAX_HELD", 250)
    with held(relay.folder):
        for part in range(4):
            relay.serve(100, first=part * 100)
            await relay.go_on()
        state = relay.recorder.state
        assert (state.unwritten, state.lost) == (200, 200)
    await relay.go_on()
    assert relay.served()[:2] == (200, 200)
    assert sum("is lost" in message for message in caplog.messages) == 1


async def test_a_refused_request_does_not_delay_others(relay: Relay) -> None:
    relay.serve(3)
    relay.recorder.finish(record(request_id="req_odd", status=1 << 70))
    relay.serve(2, first=3)
    await relay.recorder.settle()
    relay.serve(4, first=5)
    await relay.recorder.settle()
    assert relay.served() == (9, 9, 9 * 15)
    assert relay.recorder.state == (0, 1, False)


async def test_two_relays_in_one_folder_do_not_take_each_others_file(relay: Relay) -> None:
    with held(relay.folder):
        relay.serve(3)
        await relay.recorder.settle()
    successor = await Relay.start(relay.folder, relay.time)
    assert successor.recorder.state.unwritten == 0
    await relay.kill()
    relay.time.advance(PRUNE_INTERVAL_S)  # it looks for what was left behind
    task = successor.recorder._task
    assert task is not None
    await task
    assert successor.recorder.months.of("key_1", NOON) == 45
    await successor.recorder.settle()
    assert successor.served() == (3, 3, 45)
    await successor.stop()


@pytest.mark.parametrize("days", [40, 800, -40])
async def test_a_clock_that_is_wrong_for_a_minute_prunes_nothing(relay: Relay, days: int) -> None:
    relay.time.advance(STEADY_S)
    relay.serve(5)
    await relay.recorder.settle()
    relay.time.jump(days * DAY_S)
    relay.time.advance(PRUNE_INTERVAL_S)
    relay.time.jump(-days * DAY_S)
    for _ in range(3):
        relay.time.advance(PRUNE_INTERVAL_S)
    await relay.store.write()
    assert relay.served() == (5, 5, 75)
    rows = await relay.store.read("SELECT count(*) AS n FROM usage_rollups WHERE span = 'hour'")
    assert rows[0]["n"] == 1


async def test_a_clock_that_stays_wrong_prunes_an_hour_at_a_time(relay: Relay) -> None:
    for hour in range(5):
        relay.recorder.finish(record(request_id=f"req_{hour}", started_at=NOON + hour * HOUR_S))
    await relay.recorder.settle()
    relay.time.jump(40 * DAY_S)
    relay.time.advance(PRUNE_INTERVAL_S)
    relay.time.advance(STEADY_S)
    await relay.store.write()
    assert relay.served()[0] == 4


@pytest.mark.parametrize("days", [10, 40, -30, -400])
async def test_a_used_up_month_holds_though_the_clock_visits_another(
    relay: Relay, days: int
) -> None:
    relay.serve(20)
    await relay.recorder.settle()
    relay.time.jump(days * DAY_S)
    relay.serve(1)
    relay.recorder.months.of("key_1", relay.time.now)
    await relay.recorder.settle()
    relay.time.jump(-days * DAY_S)
    assert relay.recorder.months.of("key_1", relay.time.now) == 300


async def test_a_relay_that_started_with_a_wrong_clock_learns_the_right_month(
    relay: Relay,
) -> None:
    relay.serve(20)
    await relay.stop()
    relay.time.jump(40 * DAY_S)
    again = await Relay.start(relay.folder, relay.time)
    assert again.recorder.months.of("key_1", relay.time.now) == 0
    relay.time.jump(-40 * DAY_S)
    again.recorder.months.of("key_1", relay.time.now)
    assert again.recorder._task is not None
    await again.recorder._task
    assert again.recorder.months.of("key_1", relay.time.now) == 300
    await again.stop()


def test_a_line_that_was_cut_by_a_crash_is_not_read(tmp_path: Path) -> None:
    spill_file = SpillFile.of_process(tmp_path)
    spill_file.prepare()
    spill_file.append([b"one\n", b"two\n"])
    assert spill_file._descriptor is not None
    os.pwrite(spill_file._descriptor, b"thr", 8)
    os.close(spill_file._descriptor)
    (found,) = SpillFile.take_abandoned(tmp_path)
    assert list(found.lines()) == [b"one\n", b"two\n"]
    assert found.path.stat().st_mode & 0o777 == 0o600
    found.drop_first(b"one\n")
    found.drop_first(b"two\n")
    assert found.empty
    found.append([b"x\n"])
    assert list(found.lines()) == [b"x\n"]
    found.drop_first(b"x\n")
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_lines_longer_than_one_read_are_whole(tmp_path: Path) -> None:
    spill_file = SpillFile.of_process(tmp_path)
    lines = [bytes([65 + n]) * (n * 150_000 + 1) + b"\n" for n in range(6)]
    spill_file.append(lines[:4])
    spill_file.append(lines[4:])
    assert list(spill_file.lines()) == lines
    for line in lines:
        assert spill_file.first() == line
        spill_file.drop_first(line)
    assert spill_file.path.stat().st_size == RESERVED_BYTES
    spill_file.close()
