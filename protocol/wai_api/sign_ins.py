"""Sign-ins of browsers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from .bounds import MAX_TOKEN_BYTES


class SignInEntry(Struct, frozen=True, kw_only=True):
    """A browser that is signed in as `admin`. `used_at` is right to a minute; `address` is where it
    signed in from (a proxy, where one is in front), `user_agent` what it said that it is."""

    id: str
    admin: str
    created_at: float
    used_at: float
    expires_at: float
    address: str
    user_agent: str


class SignInList(Struct, frozen=True):
    """Every browser that is signed in, the one that was used last first."""

    data: tuple[SignInEntry, ...]


class SignInLink(Struct, frozen=True):
    """A link that signs a browser in, once, until `expires_at` (seconds since 1970)."""

    url: str
    expires_at: float


class SignInRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """An admin token, or what follows `#sign-in=` in a link."""

    token: Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN_BYTES)]


class SignInView(Struct, frozen=True, kw_only=True):
    """Who is signed in. `csrf` goes into the header `x-wai-csrf` of every change; `id` is the
    sign-in's, by which it can be ended."""

    id: str
    name: str
    csrf: str
    expires_at: float
    version: str
    url: str
    time: float
