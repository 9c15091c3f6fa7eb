"""The relays that share a database: list, drain."""

from __future__ import annotations

import platform
from typing import Final

from wai_api.relays import RelayList, RelayLive, RelayView
from wai_protocol.errors import Fault, RequestError
from wai_relay.access.naming import unknown
from wai_relay.fleet.relays import HEARTBEAT_S, RelayRecord

from .context import Context
from .endpoint import Call, Endpoint, Query
from .requests import own_views

SILENT_S: Final = 3 * HEARTBEAT_S


async def list_relays(context: Context, call: Call) -> RelayList:
    """Every relay of the fleet, by name."""
    return RelayList(tuple(_view(context, one) for one in await _all(context)))


async def tell_live(context: Context, call: Call) -> RelayLive:
    """What this relay alone knows of this moment, for the others."""
    pulse = context.feed.pulse
    return RelayLive(
        requests=own_views(context),
        pulse=pulse.now,
        ttft_bins=dict(pulse.ttft_bins()),
        figures=list(context.node_hours.rows.values()),
        history=pulse.history() if call.query.get("history", False) else None,
    )


async def drain_relay(context: Context, call: Call) -> RelayView:
    """Callers shall go elsewhere: it says so to load balancers, at `/readyz`, until its process
    ends."""
    return await _set_drained(context, call, drained=True)


async def undrain_relay(context: Context, call: Call) -> RelayView:
    """Callers may come again."""
    return await _set_drained(context, call, drained=False)


async def _set_drained(context: Context, call: Call, *, drained: bool) -> RelayView:
    relays, asked = context.relays, call.path["relay"]
    await _all(context)
    if not relays.all:
        raise RequestError(
            "this relay has its database for itself, so its callers have nowhere to go; to stop it,"
            " end its process, which lets answers in flight end",
            Fault.NOT_FOUND,
        )
    found = relays.find(asked)
    if found is None:
        raise unknown("relay", asked, {one.name for one in relays.all})
    if found.lost:
        raise RequestError(f"{found.name} is lost: it has no callers", Fault.NOT_FOUND)
    await relays.drain(found.id, drained=drained)
    await context.audit.record(
        call.actor, "relay.drain" if drained else "relay.undrain", found.id, name=found.name
    )
    await relays.follow()
    return _view(context, relays.find(found.id) or found)


async def _all(context: Context) -> tuple[RelayRecord, ...]:
    """Read anew who is there, or what this relay is where it is alone."""
    relays = context.relays
    if relays.shared:
        await relays.follow()
        return (*relays.all, *relays.lost)
    address = context.node_address
    return (
        RelayRecord(
            *(relays.own_id, platform.node(), address.relay, address.url, address.pin),
            *(context.version, relays.started_at),
        ),
    )


def _view(context: Context, one: RelayRecord) -> RelayView:
    silent = one.silent_s > SILENT_S
    return RelayView(
        id=one.id,
        name=one.name,
        url=one.url,
        version=one.version,
        state="lost" if one.lost else "silent" if silent else "drained" if one.drained else "ready",
        this=one.id == context.relays.own_id,
        started_at=one.started_at,
        silent_s=round(one.silent_s, 1),
        pin=one.shown_pin.hex() if one.shown_pin is not None else None,
    )


ENDPOINTS: Final = (
    Endpoint("GET", "/relays", list_relays, "List the relays of the fleet", RelayList),
    Endpoint(
        *("GET", "/live", tell_live, "Say what this relay does now, for the others", RelayLive),
        query=(
            Query("own", bool, "what every relay adds that asks; it changes nothing"),
            Query("history", bool, "the last hour too"),
        ),
        for_relays=True,
    ),
    Endpoint(
        "POST", "/relays/{relay}/drain", drain_relay, "Send a relay no more callers", RelayView
    ),
    Endpoint("POST", "/relays/{relay}/undrain", undrain_relay, "Send it callers again", RelayView),
)
