"""API keys."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from .bounds import MAX_KEY_NAME_CHARS
from .limits import KeyLimits, LimitChanges


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key; `prefix` is what of its secret may be shown."""

    id: str
    name: str
    prefix: str
    limits: KeyLimits
    created_at: float
    revoked_at: float | None


class KeyList(Struct, frozen=True):
    """API keys, oldest first."""

    data: tuple[KeyView, ...]


class CreateKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to make."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_NAME_CHARS)]
    limits: LimitChanges = LimitChanges()


class ChangeKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to change."""

    limits: LimitChanges


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """A new key, with its secret, which is shown this once."""

    key: str
