"""Sign-ins: the browsers that may administer this relay; list and end them, make a link for one."""

from __future__ import annotations

from typing import Final

from wai_api.sign_ins import SignInEntry, SignInLink, SignInList
from wai_relay.access.sign_in_links import sign_in_url
from wai_relay.access.sign_ins import SignIn

from .context import Context
from .endpoint import Call, Endpoint, Query


async def list_sign_ins(context: Context, call: Call) -> SignInList:
    """Those of all admins."""
    return SignInList(tuple(_entry(one) for one in context.sign_ins.list()))


async def make_link(context: Context, call: Call) -> SignInLink:
    """A link that signs one browser in as the admin who asks, within ten minutes."""
    secret, expires_at = await context.sign_ins.links.make(call.actor)
    await context.audit.record(call.actor, "admin.sign_in_link", call.actor)
    return SignInLink(sign_in_url(context.public_url, secret), expires_at)


async def end_sign_in(context: Context, call: Call) -> SignInEntry:
    """Refused from now on; its live pages close."""
    ended = await context.sign_ins.end_by_id(call.path["sign_in"])
    await context.audit.record(call.actor, "admin.end_sign_in", ended.admin, id=ended.id)
    return _entry(ended)


async def end_all(context: Context, call: Call) -> SignInList:
    """All are refused from now on, but perhaps one; those that are left."""
    await context.sign_ins.end_all(but=call.query.get("but", ""))
    await context.audit.record(call.actor, "admin.end_sign_ins", call.actor)
    return await list_sign_ins(context, call)


def _entry(sign_in: SignIn) -> SignInEntry:
    return SignInEntry(
        id=sign_in.id,
        admin=sign_in.admin,
        created_at=sign_in.created_at,
        used_at=sign_in.used_at,
        expires_at=sign_in.expires_at,
        address=sign_in.address,
        user_agent=sign_in.user_agent,
    )


ENDPOINTS: Final = (
    Endpoint("GET", "/sign-ins", list_sign_ins, "List the browsers that are signed in", SignInList),
    Endpoint(
        *("DELETE", "/sign-ins", end_all, "Sign every browser out", SignInList),
        query=(Query("but", str, "the id of one that stays signed in"),),
    ),
    Endpoint(
        *("POST", "/sign-in-links", make_link, "Make a link that signs a browser in", SignInLink),
        status=201,
    ),
    Endpoint("DELETE", "/sign-ins/{sign_in}", end_sign_in, "Sign a browser out", SignInEntry),
)
