"""What the relay knows of its own condition, for those who ask what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wai_relay.contracts.records import UsageState


@dataclass(frozen=True, slots=True)
class RelayCondition:
    """Reads what changes while the relay runs.

    `certificate_ends`: when the shown certificate is over, in seconds since 1970; 0 while the one
    that an authority is to give is not there; None without TLS. `folder`: the data folder.
    """

    certificate_ends: Callable[[], float | None]
    usage: Callable[[], UsageState]
    folder: Path

    def free_bytes(self) -> int | None:
        """Return the free space of the data folder's disk; None where it can't be told."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return None
