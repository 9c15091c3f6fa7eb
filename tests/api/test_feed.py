"""The live feed's events: the document, the manual and the relay name the same ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from wai_api.feed import EVENTS
from wai_relay.admin import app, events, openapi

ROOT: Final = Path(__file__).parents[2]


def test_the_document_describes_each_event() -> None:
    document = openapi.document((), "0", app.BASE, (app._FEED,))
    described = document["paths"][f"{app.BASE}/events"]["get"]["x-events"]
    assert list(described) == list(EVENTS)
    for reference in described.values():
        assert reference["$ref"].rpartition("/")[2] in document["components"]["schemas"]


def test_the_manual_names_each_event() -> None:
    text = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    table = text[text.index("`GET /admin/v1/events` is a feed") :]
    rows = re.findall(
        r"^\| (`.*?) \|", table.partition("\n\n")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(EVENTS)


def test_the_relay_sends_no_other_event() -> None:
    source = Path(events.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"_(?:event|differ)\(\s*\"(\w+)\"", source)) == set(EVENTS)
