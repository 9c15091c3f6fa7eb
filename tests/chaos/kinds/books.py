"""Faults of disk, database and clock, after which the relay's usage must be complete."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.chaos.findings import Findings
from tests.chaos.kind import Kind
from tests.chaos.needs import Need
from tests.chaos.stage import LinkStage, Size, Stage, link_stage
from tests.harness.caller import chat, request
from tests.harness.counting_upstream import MODEL
from tests.harness.moved_clock import MovedClock, moved_clock
from tests.harness.processes import wait_until

NUMBERS: Final = 10  # of an answer: many are over while a fault lasts
PROMPT_TOKENS: Final = 5  # what the counting upstream says of every prompt
QUOTA_TOKENS: Final = 60
QUOTA_TRIES: Final = 30
WRITTEN_WITHIN_S: Final = 40.0
DISK_MIB: Final = 24
FULL_S: Final = 12.0
PRUNED_AFTER_S: Final = 65.0  # old rows are looked for each minute
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Books:
    """The stored requests and tokens of one key: in the raw rows, and in the sums by day."""

    rows: int
    row_tokens: int
    summed: int
    summed_tokens: int

    @classmethod
    def read(cls, data: Path, key_id: str) -> Books:
        """Read the relay's database, without a lock that would disturb the relay."""
        with closing(sqlite3.connect(f"file:{data / 'relay.db'}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT count(*), coalesce(sum(prompt_tokens + completion_tokens), 0)"
                " FROM usage_requests WHERE key_id = ? AND status = 200",
                (key_id,),
            ).fetchone()
            sums = database.execute(
                "SELECT coalesce(sum(requests - errors), 0),"
                " coalesce(sum(prompt_tokens + completion_tokens), 0)"
                " FROM usage_rollups WHERE span = 'day' AND key_id = ?",
                (key_id,),
            ).fetchone()
        return cls(*rows, *sums)


class _BooksKind(Kind[LinkStage]):
    """Callers count short answers all the time; the tokens of one key's month are used up during
    the fault, and the key must stay refused."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(dice)
        self._quota_keys: list[str] = []
        self._ready: Counter[int] = Counter()

    def stage(self, folder: Path, callers: int) -> AbstractContextManager[LinkStage]:
        return link_stage(folder, Size(callers, NUMBERS))

    @abstractmethod
    def strike(self, stage: LinkStage) -> Iterator[None]:
        """Begin the fault, yield once while it lasts, and wait until it has ended."""

    def apply(self, stage: LinkStage, found: Findings) -> None:
        secret = stage.running.create_key("quota", "--monthly-tokens", str(QUOTA_TOKENS)).secret
        strike = self.strike(stage)
        next(strike)
        if _spend(stage, secret):
            self._quota_keys.append(secret)
        else:
            found.broken.append(f"a month of {QUOTA_TOKENS} tokens took {QUOTA_TRIES} answers")
        for _ in strike:
            self._ready[stage.running.get("/readyz")] += 1

    def check(self, stage: LinkStage, found: Findings) -> None:
        readiness = ", ".join(f"{code} {n} times" for code, n in sorted(self._ready.items()))
        found.notes.append(f"/readyz meanwhile: {readiness or 'not asked'}")
        self._compare(stage, found, "when it was over")
        self._ask_again(stage, found, "when it was over")
        stage.running.restart_relay()
        stage.running.wait_for_state("box", "ready")
        self._compare(stage, found, "after a restart")
        self._ask_again(stage, found, "after a restart")

    def _compare(self, stage: Stage, found: Findings, when: str) -> None:
        """Compare the stored usage with what the callers counted."""
        answers = [one for one in stage.callers.answers() if one.whole]
        due, tokens = len(answers), sum(PROMPT_TOKENS + one.wanted for one in answers)
        whole = Books(due, tokens, due, tokens)
        key_id = stage.key.id
        try:
            wait_until(
                lambda: Books.read(stage.running.data, key_id) == whole, "", WRITTEN_WITHIN_S
            )
        except AssertionError:
            found.broken.append(f"{when}: {Books.read(stage.running.data, key_id)}, due: {whole}")
        else:
            found.notes.append(f"{when}: {due} requests, {tokens} tokens, all in the books")

    def _ask_again(self, stage: Stage, found: Findings, when: str) -> None:
        again = [status for key in self._quota_keys if (status := _ask(stage, key)) != 429]
        if again:
            found.broken.append(
                f"{when}: {len(again)} of {len(self._quota_keys)} keys whose month was used up got"
                f" {Counter(again)}"
            )


def _ask(stage: Stage, secret: str) -> int:
    """Send a small request and return the status."""
    headers = {"Authorization": f"Bearer {secret}"}
    body = chat(MODEL, max_tokens=NUMBERS)
    with request(stage.running, "/v1/chat/completions", body, headers) as answer:
        answer.read()
        return answer.status


def _spend(stage: Stage, secret: str) -> bool:
    """Send requests until the month's tokens are used up; return whether that happened."""
    return any(_ask(stage, secret) == 429 for _ in range(QUOTA_TRIES))


class FullDisk(_BooksKind):
    name = "disk-full"
    promise = "a full disk loses no row of usage and forgets no month, also over a restart"
    needs = (Need.NAMESPACES,)

    @contextmanager
    def stage(self, folder: Path, callers: int) -> Iterator[LinkStage]:
        data = folder / "relay"
        data.mkdir(mode=0o700)
        small = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "tmpfs", str(data))
        subprocess.run(small, check=True, capture_output=True)
        try:
            with link_stage(folder, Size(callers, NUMBERS)) as stage:
                yield stage
        finally:
            subprocess.run(("umount", "--lazy", str(data)), check=True, capture_output=True)

    def strike(self, stage: LinkStage) -> Iterator[None]:
        _fill(_ballast(stage))
        yield
        until = time.monotonic() + FULL_S
        while time.monotonic() < until:
            time.sleep(1.0)
            yield

    def undo(self, stage: LinkStage) -> None:
        _ballast(stage).unlink(missing_ok=True)


def _ballast(stage: Stage) -> Path:
    return stage.running.data / "ballast"


def _fill(path: Path) -> None:
    """Write to `path` until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(os.urandom(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


class BusyDatabase(_BooksKind):
    name = "database-busy"
    promise = (
        "another process that locks the database for 7 to 20 s costs no row of usage and forgets"
        " no month, also over a restart"
    )

    def strike(self, stage: LinkStage) -> Iterator[None]:
        database = sqlite3.connect(
            stage.running.data / "relay.db", timeout=30, isolation_level=None
        )
        with closing(database):
            database.execute("BEGIN IMMEDIATE")
            yield
            until = time.monotonic() + self.dice.uniform(7.0, 20.0)
            while time.monotonic() < until:
                time.sleep(1.0)
                yield
            database.execute("ROLLBACK")

    def undo(self, stage: LinkStage) -> None:
        """The lock ends with its connection."""


class ClockJumps(_BooksKind):
    name = "clock"
    promise = (
        "a wall clock that jumps into the next month and back, 40 days on for a minute, or a day"
        " back costs no stream and no row of usage, and a month that is used up stays so"
    )

    def __init__(self, dice: random.Random) -> None:
        super().__init__(dice)
        self._clock: MovedClock | None = None

    @contextmanager
    def stage(self, folder: Path, callers: int) -> Iterator[LinkStage]:
        self._clock = moved_clock(folder / "clock")
        with link_stage(folder, Size(callers, NUMBERS), through=self._clock.command) as stage:
            yield stage

    def strike(self, stage: LinkStage) -> Iterator[None]:
        """The month is used up at the real time; then the clock jumps."""
        yield
        for offset_s, lasts_s in (
            (_to_next_month_s(), 10.0),
            (-_DAY_S, 10.0),
            (40 * _DAY_S, PRUNED_AFTER_S),
        ):
            self._move(offset_s)
            until = time.monotonic() + lasts_s
            while time.monotonic() < until:
                time.sleep(2.0)
                yield
            self._move(0.0)
            time.sleep(2.0)

    def undo(self, stage: LinkStage) -> None:
        self._move(0.0)

    def _move(self, offset_s: float) -> None:
        assert self._clock is not None
        self._clock.move(offset_s)


def _to_next_month_s() -> float:
    """Return the seconds from now to one hour after the next month's start."""
    now = datetime.now(UTC)
    begin = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, 1, tzinfo=UTC)
    return (begin - now).total_seconds()
