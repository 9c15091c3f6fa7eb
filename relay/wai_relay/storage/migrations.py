"""Load the numbered SQL files that build the schema, in order.

`NNNN_name.sql` is for both databases, in the SQL of SQLite; `postgres_schema` says in which words
PostgreSQL's differs. What only one of them needs, or what cannot be said in words of both
(triggers, functions), is in `NNNN_name.sqlite.sql` or `NNNN_name.postgres.sql`, which is applied
after the common file of that number, if there is one. A number may have any of the three.

There are no downgrades. SQLite's file with a newer schema is refused, because an older relay would
write rows that do not fit it. Relays that share PostgreSQL are upgraded one after the other, so an
older one goes on with a newer schema, unless a migration in it says that it takes something away:

    -- usable from: 12

in a line of its own means that a relay which knows no migration from number 12 on must not use the
schema. A migration without it only adds, so that the statements of older relays stay right.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Final, Literal

import msgspec

from wai_protocol.errors import StoreError

_FOLDER: Final = Path(__file__).with_name("migrations")
_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+?)(?:\.(sqlite|postgres))?\.sql")
_USABLE_FROM: Final = re.compile(r"^-- usable from: (\d+)$", re.MULTILINE)

Database = Literal["sqlite", "postgres"]


class Migration(msgspec.Struct, frozen=True):
    """The files of one number in `migrations/`.

    `sql`: that of both databases; `own_sql`: that of the one that it was loaded for.
    """

    number: int
    name: str
    sql: str = ""
    own_sql: str = ""

    @property
    def usable_from(self) -> int:
        """The number of a migration that a relay must know to use the schema after this one."""
        return max(map(int, _USABLE_FROM.findall(self.sql + "\n" + self.own_sql)), default=0)

    def statements(self) -> list[str]:
        """Return the statements for SQLite. Semicolons within a trigger do not end a statement."""
        found, pending = [], ""
        for line in f"{self.sql}\n{self.own_sql}".splitlines(keepends=True):
            pending += line
            if sqlite3.complete_statement(pending):
                found.append(pending.strip())
                pending = ""
        if pending.strip():
            raise StoreError(f"migration {self.number:04}_{self.name} ends within a statement")
        return found


def load_migrations(database: Database = "sqlite") -> list[Migration]:
    """Load all migrations of this version, which are numbered 1, 2, 3, … without a gap."""
    names: dict[int, str] = {}
    common: dict[int, str] = {}
    own: dict[int, str] = {}
    for file in _FOLDER.iterdir():
        if (matched := _FILE_NAME.fullmatch(file.name)) is None:
            continue
        number = int(matched[1])
        if names.setdefault(number, matched[2]) != matched[2]:
            raise StoreError(f"two migrations of this installation have the number {number}")
        if matched[3] is None:
            common[number] = file.read_text(encoding="utf-8")
        elif matched[3] == database:
            own[number] = file.read_text(encoding="utf-8")
    if sorted(names) != list(range(1, len(names) + 1)):
        raise StoreError("the migrations of this installation are not numbered 1, 2, 3, …")
    return [
        Migration(number, names[number], common.get(number, ""), own.get(number, ""))
        for number in sorted(names)
    ]


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
