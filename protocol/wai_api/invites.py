"""Invites, by which nodes join."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from .bounds import MAX_TTL_S
from .patterns import NODE_NAME, one_of

InviteState: TypeAlias = Annotated[str, one_of("open", "used", "revoked", "expired")]


class InviteView(Struct, frozen=True, kw_only=True):
    """An invite; `used_by` is the id of the node that joined by it."""

    id: str
    name: str | None
    state: InviteState
    may_deploy: bool
    created_at: float
    expires_at: float
    used_at: float | None
    used_by: str | None


class InviteList(Struct, frozen=True):
    """Invites, oldest first."""

    data: tuple[InviteView, ...]


class CreateInvite(Struct, frozen=True, forbid_unknown_fields=True):
    """An invite to make; without `ttl_s` it is good for as long as the settings say."""

    name: Annotated[str, Meta(pattern=NODE_NAME)] | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=MAX_TTL_S)] | None = None
    may_deploy: bool = True


class CreatedInvite(InviteView, frozen=True, kw_only=True):
    """A new invite, with its string, which is shown this once. `command` is what a person runs on
    the machine that shall be a node: it installs wai there, joins, and starts it."""

    invite: str
    command: str
