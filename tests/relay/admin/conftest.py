"""Fixtures of the admin API's tests."""

from __future__ import annotations

import pytest

from tests.relay.conftest import Clock
from wai_relay.storage import SqliteStore

from .fakes import Api, make_api


@pytest.fixture
async def api(store: SqliteStore, clock: Clock) -> Api:
    return await make_api(store, clock)
