"""What a person means by a name or an id, and what an error says where nothing is meant."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from wai_protocol.errors import Fault, RequestError

MAX_SHOWN_CHARS: Final = 80  # of what was asked for, in an error


def unknown(kind: str, asked: str, names: Collection[str]) -> RequestError:
    """The error (NOT_FOUND) for a name of a `kind` that is none of `names`; it offers the nearest.

    `kind`: a noun such as "API key".
    """
    import difflib  # nobody waits for its 10 ms but who has mistyped

    nearest = difflib.get_close_matches(asked[:MAX_SHOWN_CHARS], names, n=1, cutoff=0.5)
    offer = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return RequestError(f"there is no {kind} {asked[:MAX_SHOWN_CHARS]!r}{offer}", Fault.NOT_FOUND)
