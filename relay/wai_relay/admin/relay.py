"""The relay itself: who asks, its settings, what was done to it."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET
from msgspec.structs import asdict

from wai_api.relay import AuditList, AuditView, ChangeSettings, SettingsView, WhoAmI
from wai_relay.access.audit import MAX_LISTED

from .context import Context
from .endpoint import Call, Endpoint, Query


async def who_am_i(context: Context, call: Call) -> WhoAmI:
    """The admin whose token this is; `time` lets a client see how far its clock is off."""
    address = context.address
    return WhoAmI(
        name=call.actor,
        version=context.version,
        url=address.url,
        pin=address.pin.hex() if address.pin is not None else None,
        time=context.clock(),
    )


async def get_settings(context: Context, call: Call) -> SettingsView:
    """What is set."""
    return SettingsView(**asdict(context.settings.now))


async def change_settings(context: Context, call: Call) -> SettingsView:
    """Set some of it."""
    wanted: ChangeSettings = call.body
    given = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    changes = {name: value for name, value in given.items() if value is not UNSET}
    changed = await context.settings.change(**changes)
    await context.audit.record(call.actor, "settings.change", "relay", **changes)
    return SettingsView(**asdict(changed))


async def list_audit(context: Context, call: Call) -> AuditList:
    """The newest first; go on with `before` the last id."""
    entries = await context.audit.list(
        limit=call.query.get("limit", 100), before=call.query.get("before")
    )
    return AuditList(tuple(AuditView(**asdict(entry)) for entry in entries))


ENDPOINTS: Final = (
    Endpoint("GET", "/whoami", who_am_i, "Say whose token this is", WhoAmI),
    Endpoint("GET", "/settings", get_settings, "Look at the settings", SettingsView),
    Endpoint(
        *("PATCH", "/settings", change_settings, "Change settings", SettingsView, ChangeSettings)
    ),
    Endpoint(
        *("GET", "/audit", list_audit, "Read the audit log", AuditList),
        query=(
            Query("limit", int, "at most so many entries", 1, MAX_LISTED),
            Query("before", int, "only entries older than the one with this id"),
        ),
    ),
)
