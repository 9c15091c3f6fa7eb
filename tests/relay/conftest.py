"""What tests of the relay share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from wai_relay.storage import SqliteStore


@dataclass(slots=True)
class Clock:
    """Seconds since 1970, moved by the test."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def everything_in(folder: Path) -> bytes:
    """What somebody who steals the folder reads."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "relay.db")
    yield opened
    await opened.close()
