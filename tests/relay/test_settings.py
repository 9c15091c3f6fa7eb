"""What an admin sets is there after a restart, on each kind of store."""

from __future__ import annotations

import pytest

from tests.harness.stores import both_stores, open_store, store_database
from wai_protocol.errors import RequestError
from wai_relay.settings import RelaySettings, SettingsBook
from wai_relay.storage import Store

__all__ = ["both_stores", "open_store", "store_database"]
pytestmark = pytest.mark.anyio


async def test_what_was_set_is_there_after_a_restart(store: Store) -> None:
    book = await SettingsBook.load(store)
    assert book.now == RelaySettings()
    await book.change(usage_retention_days=7.0, public_url="https://llm.example.com")
    await book.change(usage_retention_days=8.0)
    again = await SettingsBook.load(store)
    assert again.now == RelaySettings(
        usage_retention_days=8.0, public_url="https://llm.example.com"
    )


async def test_a_setting_that_makes_no_sense_changes_nothing(store: Store) -> None:
    book = await SettingsBook.load(store)
    with pytest.raises(RequestError):
        await book.change(usage_retention_days=-1.0)
    assert (await SettingsBook.load(store)).now == RelaySettings()
