"""API keys."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from .bounds import MAX_GRACE_S, MAX_KEY_NAME_CHARS, MAX_LABELS
from .limits import KeyLimits, LimitChanges
from .patterns import LABEL

KeyName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_NAME_CHARS)]
KeyLabels: TypeAlias = Annotated[
    tuple[Annotated[str, Meta(pattern=LABEL)], ...], Meta(max_length=MAX_LABELS)
]


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key; `prefix` is what of its secret may be shown. `labels`: words that keys are
    grouped by. `former_until`: a former secret of it is good until then, null if there is none.
    `last_used_at` is the hour of its latest request; null for a key that was not used, and in
    answers that are not a list. `month_tokens`: what it took in this month (UTC). `capture_until`:
    its prompts and answers are captured until then, null if they are not."""

    id: str
    name: str
    prefix: str
    limits: KeyLimits
    created_at: float
    revoked_at: float | None
    last_used_at: float | None = None
    labels: tuple[str, ...] = ()
    former_until: float | None = None
    month_tokens: int = 0
    capture_until: float | None = None


class KeyList(Struct, frozen=True):
    """API keys, oldest first."""

    data: tuple[KeyView, ...]


class CreateKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to make."""

    name: KeyName
    limits: LimitChanges = LimitChanges()
    labels: KeyLabels = ()


class ChangeKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of a key; null leaves it as it is."""

    limits: LimitChanges | None = None
    name: KeyName | None = None
    labels: KeyLabels | None = None


class RotateKey(Struct, frozen=True, forbid_unknown_fields=True):
    """Give a key another secret. `grace_s`: for how long the former one is good besides; with 0 no
    former secret is good any more."""

    grace_s: Annotated[float, Meta(ge=0, le=MAX_GRACE_S)] = 86400.0


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """A key with its new secret, which is shown this once."""

    key: str


class TrialView(Struct, frozen=True, kw_only=True):
    """A trial: what names it, and until when its key is good at most."""

    id: str = ""
    expires_at: float


class TrialKey(TrialView, frozen=True, kw_only=True):
    """A key for minutes, which is in the relay's memory only; what is asked with it is not
    counted."""

    key: str
