"""The numbers of PostgreSQL's advisory locks, each for one thing that one relay does at a time.

The first four bytes spell `wai` and a zero byte, so that other programs in the same database are
not met by chance.
"""

from __future__ import annotations

import enum
from typing import Final

_SPACE: Final = int.from_bytes(b"wai\0") << 32


class AdvisoryLock(enum.IntEnum):
    """The argument of `pg_advisory_lock` and its kin."""

    SCHEMA = _SPACE + 1
    """Held by a relay that applies migrations, until it has committed them."""
    HOUSEKEEPING = _SPACE + 2
    """Held by the relay that does what one of them does for all: retention, renewal."""
