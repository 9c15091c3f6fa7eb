"""What is wrong now, and what to do about it."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Struct

from .patterns import one_of

Kind = Literal[
    "setup",
    "relay",
    "certificate",
    "database",
    "disk",
    "clock",
    "notify",
    "node",
    "upstream",
    "deployment",
    "provider",
    "key",
]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
ProblemKind: TypeAlias = Annotated[str, one_of(*KINDS)]


class ProblemView(Struct, frozen=True):
    """Something that is wrong with `subject` (a node, a model, or the relay). `text` says what, and
    `advice` what to do about it, a sentence each.

    `id` stays the same while the problem lasts, also where `text` changes ("" from relays that do
    not tell it). `since`: when the relay saw it first, in seconds since 1970; null if it is new.
    """

    kind: ProblemKind
    subject: str
    text: str
    advice: str
    id: str = ""
    since: float | None = None


class ProblemList(Struct, frozen=True):
    """Everything that is wrong now, the relay's own problems first."""

    data: tuple[ProblemView, ...]
