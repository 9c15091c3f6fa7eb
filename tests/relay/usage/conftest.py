"""What these tests share: they run on a store of each kind."""

from tests.harness.stores import both_stores, open_store, store_database

__all__ = ["both_stores", "open_store", "store_database"]
