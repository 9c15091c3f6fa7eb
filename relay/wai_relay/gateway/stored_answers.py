"""Where answers are kept: OpenAI's Responses API lets a caller refer to an answer by its id.

Such an answer is on the node that gave it, so whatever refers to it goes there. It is remembered
for a while and in bounded number, in this process only; a reference that is not remembered goes
where any request goes, and the server there says that it knows no such answer. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from wai_protocol.surface import Route

from .dialects.dialect import Fields
from .raw_json import MAX_SCALAR_BYTES, value_of

MAX_STORED: Final = 20_000
"""Answers that are remembered: 5 MB."""
MAX_ID_CHARS: Final = 128
REFERENCES: Final = {
    "/v1/responses": "previous_response_id",
    "/api/v1/chat": "previous_response_id",
}
"""By the path of a route: the field of its body that refers to an answer."""


class StoredAt(NamedTuple):
    """The node that keeps an answer, and the model that gave it."""

    node: str
    model: str


class StoredAnswers:
    """What is remembered. An answer belongs to the API key that asked for it."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], StoredAt] = {}

    def note(self, key_id: str, answer_id: str, place: StoredAt) -> None:
        """The answer is kept at `place`. The oldest one is forgotten where there are too many."""
        if not 0 < len(answer_id) <= MAX_ID_CHARS:
            return
        self._places.pop((key_id, answer_id), None)
        self._places[key_id, answer_id] = place
        if len(self._places) > MAX_STORED:
            del self._places[next(iter(self._places))]

    def find(self, key_id: str, answer_id: str) -> StoredAt | None:
        """Where the answer is kept, if that is remembered."""
        return self._places.get((key_id, answer_id))


def referred_to(route: Route, fields: Fields) -> str | None:
    """The id of the answer that a request's body refers to."""
    raw = fields.get(REFERENCES.get(route.path, ""))
    if raw is None or len(bytes(raw)) > MAX_ID_CHARS + 2 + MAX_SCALAR_BYTES:
        return None
    value = value_of(raw)
    return value if isinstance(value, str) and value else None


def stored_id(path: str, route: Route) -> str:
    """The id in the path of a request for a stored answer."""
    return path.split("/")[route.path.split("/").index("{id}")]
