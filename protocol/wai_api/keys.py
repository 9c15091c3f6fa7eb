"""API keys."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from .bounds import MAX_KEY_NAME_CHARS
from .limits import KeyLimits, LimitChanges


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key; `prefix` is what of its secret may be shown. `last_used_at` is the hour of its
    latest request; null for a key that was not used, and in answers that are not a list."""

    id: str
    name: str
    prefix: str
    limits: KeyLimits
    created_at: float
    revoked_at: float | None
    last_used_at: float | None = None


class KeyList(Struct, frozen=True):
    """API keys, oldest first."""

    data: tuple[KeyView, ...]


class CreateKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to make."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_NAME_CHARS)]
    limits: LimitChanges = LimitChanges()


class ChangeKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of a key; null leaves it as it is."""

    limits: LimitChanges | None = None
    name: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_NAME_CHARS)] | None = None


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """A new key, with its secret, which is shown this once."""

    key: str


class TrialKey(Struct, frozen=True, kw_only=True):
    """A key for minutes, which is in the relay's memory only; what is asked with it is not
    counted."""

    key: str
    expires_at: float
