"""What a relay keeps on disk, behind one small interface."""

from .sqlite import SqliteStore
from .store import ConflictError, RefusedError, Row, Store, Value, Write, until_restart

__all__ = [
    "ConflictError",
    "RefusedError",
    "Row",
    "SqliteStore",
    "Store",
    "Value",
    "Write",
    "until_restart",
]
