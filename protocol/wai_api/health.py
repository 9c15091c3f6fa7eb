"""What is wrong now, and what to do about it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from msgspec import Struct

from .patterns import one_of

Kind = Literal[
    "setup", "certificate", "database", "disk", "node", "upstream", "deployment", "requests"
]
ProblemKind: TypeAlias = Annotated[str, one_of(*get_args(Kind))]


class ProblemView(Struct, frozen=True):
    """Something that is wrong with `subject` (a node, a model, or the relay). `text` says what, and
    `advice` what to do about it, a sentence each."""

    kind: ProblemKind
    subject: str
    text: str
    advice: str


class ProblemList(Struct, frozen=True):
    """Everything that is wrong now, the relay's own problems first."""

    data: tuple[ProblemView, ...]
