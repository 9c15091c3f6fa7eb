"""Admins."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from .patterns import ADMIN_NAME


class AdminView(Struct, frozen=True, kw_only=True):
    """Someone who may administer this relay."""

    name: str
    created_at: float


class AdminList(Struct, frozen=True):
    """Those that are not revoked, oldest first."""

    data: tuple[AdminView, ...]


class CreateAdmin(Struct, frozen=True, forbid_unknown_fields=True):
    """Someone to let in."""

    name: Annotated[str, Meta(pattern=ADMIN_NAME)]


class CreatedAdmin(AdminView, frozen=True, kw_only=True):
    """A new admin, with the token, which is shown this once."""

    token: str
