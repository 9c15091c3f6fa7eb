"""Invites: create, list, revoke."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from wai_api.invites import CreatedInvite, CreateInvite, InviteList, InviteView
from wai_relay.fleet.invites import InviteRecord
from wai_relay.installer import one_line

from .context import Context
from .endpoint import Call, Endpoint


async def list_invites(context: Context, call: Call) -> InviteList:
    """All of them, those too that are not good any more."""
    invites = await context.invites.list()
    return InviteList(tuple(InviteView(**_fields(context, invite)) for invite in invites))


async def create_invite(context: Context, call: Call) -> CreatedInvite:
    """A join string for one node; it is in this answer and nowhere else."""
    wanted: CreateInvite = call.body
    settings = context.settings.now
    record, text = await context.invites.create(
        context.node_address,
        name=wanted.name,
        may_deploy=wanted.may_deploy,
        ttl_s=settings.invite_ttl_s if wanted.ttl_s is None else wanted.ttl_s,
        also=tuple(one.known for one in context.relays.others),
    )
    await context.audit.record(call.actor, "invite.create", record.id, name=record.name)
    # A pin is of this relay's certificate, and the public address may lead to another one.
    pinned = context.address.pin is not None
    shown = context.node_address if pinned else replace(context.address, url=context.public_url)
    command = one_line(shown, text)
    return CreatedInvite(**_fields(context, record), invite=text, command=command)


async def revoke_invite(context: Context, call: Call) -> InviteView:
    """Worthless from now on."""
    record = await context.invites.revoke(call.path["invite"])
    await context.audit.record(call.actor, "invite.revoke", record.id, name=record.name)
    return InviteView(**_fields(context, record))


def _fields(context: Context, invite: InviteRecord) -> dict[str, Any]:
    return {
        "id": invite.id,
        "name": invite.name,
        "state": invite.state(context.clock()),
        "may_deploy": invite.may_deploy,
        "created_at": invite.created_at,
        "expires_at": invite.expires_at,
        "used_at": invite.used_at,
        "used_by": invite.used_by,
    }


ENDPOINTS: Final = (
    Endpoint("GET", "/invites", list_invites, "List the invites", InviteList),
    Endpoint(
        *("POST", "/invites", create_invite, "Create an invite", CreatedInvite, CreateInvite),
        status=201,
    ),
    Endpoint("DELETE", "/invites/{invite}", revoke_invite, "Revoke an unused invite", InviteView),
)
