"""Usage rows as CSV, for spreadsheets: the same text from the admin API and from `wai usage`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

# A spreadsheet takes cells that begin so for formulas; names come from nodes and from admins.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A line of `columns`, then one for each row; what is None is left empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in columns])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return "'" + value
    return round(value, 3) if isinstance(value, float) else value
