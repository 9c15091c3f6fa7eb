"""Admins: list, add by name, revoke."""

from __future__ import annotations

from typing import Final

from wai_api.admins import AdminList, AdminView, CreateAdmin, CreatedAdmin
from wai_relay.identity import new_admin_token

from .context import Context
from .endpoint import Call, Endpoint


async def list_admins(context: Context, call: Call) -> AdminList:
    """Everyone; `local` is this machine's."""
    found = await context.admins.list()
    return AdminList(tuple(AdminView(name=a.name, created_at=a.created_at) for a in found))


async def create_admin(context: Context, call: Call) -> CreatedAdmin:
    """A token for one more; it is in this answer and nowhere else."""
    token = new_admin_token()
    admin = await context.admins.create(call.body.name, token)
    await context.audit.record(call.actor, "admin.create", admin.name)
    return CreatedAdmin(name=admin.name, created_at=admin.created_at, token=token)


async def revoke_admin(context: Context, call: Call) -> AdminList:
    """Refused from now on, in every browser too; who is left."""
    try:
        await context.admins.revoke(call.path["admin"])
    finally:  # also where the store failed: they are refused from now on
        if not context.admins.knows(call.path["admin"]):
            context.sign_ins.forget_admin(call.path["admin"])
    await context.audit.record(call.actor, "admin.revoke", call.path["admin"])
    return await list_admins(context, call)


ENDPOINTS: Final = (
    Endpoint("GET", "/admins", list_admins, "List the admins", AdminList),
    Endpoint(
        *("POST", "/admins", create_admin, "Add an admin", CreatedAdmin, CreateAdmin), status=201
    ),
    Endpoint("DELETE", "/admins/{admin}", revoke_admin, "Revoke an admin's token", AdminList),
)
