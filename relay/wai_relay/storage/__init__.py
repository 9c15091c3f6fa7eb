"""What a relay keeps on disk, behind one small interface."""

from .sqlite import SqliteStore
from .store import Row, Store, StoreConflict, Value, Write

__all__ = ["Row", "SqliteStore", "Store", "StoreConflict", "Value", "Write"]
