"""The relay itself: who asks, its settings, what was done to it."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from .bounds import MAX_TTL_S
from .patterns import URL


class AuditView(Struct, frozen=True, kw_only=True):
    """`actor` did `action` to `subject`."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class AuditList(Struct, frozen=True):
    """Audit entries, newest first."""

    data: tuple[AuditView, ...]


class SettingsView(Struct, frozen=True, kw_only=True):
    """What can be changed while the relay runs."""

    invite_ttl_s: float
    public_url: str | None
    usage_retention_days: float


class ChangeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings to change; what is left out stays as it is."""

    invite_ttl_s: Annotated[float, Meta(gt=0, le=MAX_TTL_S)] | UnsetType = UNSET
    public_url: Annotated[str, Meta(max_length=512, pattern=URL)] | UnsetType | None = UNSET
    usage_retention_days: Annotated[float, Meta(gt=0, le=3660)] | UnsetType = UNSET


class WhoAmI(Struct, frozen=True, kw_only=True):
    """The admin whose token this is, and the relay that answers.

    `url`: how nodes reach it. `pin`: where they know it by that and not by an authority, the
    SHA-256 of its certificate's public key, in hex.
    """

    name: str
    version: str
    url: str
    pin: str | None
    time: float
