"""How a problem is put into words."""

from __future__ import annotations

from typing import Final

from wai_api.health import Kind, ProblemView
from wai_transport.plain_text import shortened

RELAY: Final = "relay"
"""The subject of the relay's own problems."""

MAX_SHOWN_CHARS: Final = 300  # of a text that a node or a server sent


def problem(kind: Kind, subject: str, what: str, text: str, advice: str) -> ProblemView:
    """One problem. `what`: a word that tells it from others of this kind and subject."""
    return ProblemView(
        kind, subject, shortened(text, MAX_SHOWN_CHARS), advice, f"{kind} {subject} {what}"
    )
