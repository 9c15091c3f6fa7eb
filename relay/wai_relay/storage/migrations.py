"""The numbered SQL files that build the schema, and in which order they run.

Forward only. A database whose schema is newer than these files is refused: an older relay would
write rows that it does not understand.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from importlib import resources
from typing import Final

from wai_protocol.errors import StoreError

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`: `NNNN_name.sql`."""

    number: int
    name: str
    sql: str

    def statements(self) -> list[str]:
        """The file's statements, one by one; a trigger's inner semicolons don't end it."""
        found, pending = [], ""
        for line in self.sql.splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                found.append(pending.strip())
                pending = ""
        if pending.strip():
            raise StoreError(f"migration {self.number:04}_{self.name} ends within a statement")
        return found


def load_migrations() -> list[Migration]:
    """All migrations of this version, numbered 1, 2, 3, … without a gap."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        if matched := _FILE_NAME.fullmatch(file.name):
            sql = file.read_text(encoding="utf-8")
            found.append(Migration(int(matched[1]), matched[2], sql))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise StoreError("the migrations of this installation are not numbered 1, 2, 3, …")
    return found


def pending(migrations: list[Migration], applied: int) -> list[Migration]:
    """Those still to run on a schema at number `applied`. Raises `StoreError` if it is newer."""
    newest = migrations[-1].number if migrations else 0
    if applied > newest:
        raise StoreError(
            f"the database has schema {applied}, this version of wai knows only {newest}: "
            "it was written by a newer wai; install that one or restore an older copy of the folder"
        )
    return [migration for migration in migrations if migration.number > applied]
