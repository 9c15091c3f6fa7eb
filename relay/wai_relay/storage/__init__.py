"""The relay's database, behind a small interface (`Store`)."""

from .sqlite import SqliteStore
from .store import ConflictError, RefusedError, Row, Store, Value, Write, undone_by_restart

__all__ = [
    "ConflictError",
    "RefusedError",
    "Row",
    "SqliteStore",
    "Store",
    "Value",
    "Write",
    "undone_by_restart",
]
