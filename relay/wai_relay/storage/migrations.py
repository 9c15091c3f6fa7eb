"""Load the numbered SQL files that build the schema, in order.

There are no downgrades. A database with a newer schema than these files is refused, because an
older relay would write rows that do not fit it.
"""

from __future__ import annotations

import re
import sqlite3
from importlib import resources
from typing import Final

import msgspec

from wai_protocol.errors import StoreError

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


class Migration(msgspec.Struct, frozen=True):
    """One file of `migrations/`: `NNNN_name.sql`."""

    number: int
    name: str
    sql: str

    def statements(self) -> list[str]:
        """Return the file's statements. Semicolons within a trigger do not end a statement."""
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
    """Load all migrations of this version, which are numbered 1, 2, 3, … without a gap."""
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
    """Return the migrations that a schema with the number `applied` still needs.

    Raises `StoreError` if the schema is newer than all migrations.
    """
    newest = migrations[-1].number if migrations else 0
    if applied > newest:
        raise StoreError(
            f"the database has schema {applied}, this version of wai knows only {newest}: "
            "it was written by a newer wai; install that one or restore an older copy of the folder"
        )
    return [migration for migration in migrations if migration.number > applied]
