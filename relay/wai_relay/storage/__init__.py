"""The relay's database, behind a small interface (`Store`)."""

from .housekeeping import Housekeeping
from .sqlite import SqliteStore
from .store import Away, ConflictError, RefusedError, Row, Store, Value, Write, undone_by_restart

__all__ = [
    "Away",
    "ConflictError",
    "Housekeeping",
    "RefusedError",
    "Row",
    "SqliteStore",
    "Store",
    "Value",
    "Write",
    "undone_by_restart",
]
