"""Nodes: list, look, rename, drain, remove."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from wai_api.nodes import ChangeNode, NodeHistory, NodeList, NodeView
from wai_relay.access.naming import unknown
from wai_relay.fleet.registry import no_such_node

from .context import Context
from .endpoint import Call, Endpoint
from .live_nodes import LiveNode, node_view


async def list_nodes(context: Context, call: Call) -> NodeList:
    """Every node that has joined."""
    return NodeList(tuple(node_view(node) for node in context.fleet.nodes()))


async def get_node(context: Context, call: Call) -> NodeView:
    """One node, by name or id."""
    return node_view(_find(context, call))


async def node_history(context: Context, call: Call) -> NodeHistory:
    """Its last hour."""
    return context.node_hours.history(_find(context, call).record.id)


async def change_node(context: Context, call: Call) -> NodeView:
    """Another name, or slots of upstreams that do not tell them."""
    wanted: ChangeNode = call.body
    node = _find(context, call)
    if wanted.name is not None:
        before = node.record.name
        await context.fleet.rename(node.record.id, wanted.name)
        changes = {"name": wanted.name, "before": before}
        await context.audit.record(call.actor, "node.rename", node.record.id, **changes)
        await _have_keys_follow(context, call.actor, before, wanted.name)
    for upstream, slots in (wanted.slots or {}).items():
        known = {model.upstream for model in node.status.models} | set(node.record.slots)
        if upstream not in known:
            raise unknown("upstream of this node", upstream, known)
        await context.fleet.set_slots(node.record.id, upstream, slots)
        changes = {"name": node.record.name, "upstream": upstream, "slots": str(slots)}
        await context.audit.record(call.actor, "node.slots", node.record.id, **changes)
    return node_view(node)


async def _have_keys_follow(context: Context, actor: str, before: str, name: str) -> None:
    """A key that may use this node only goes on to: by the new name, and not by the old one, which
    another node may get."""
    for key in await context.keys.list():
        if before in key.limits.nodes:
            names = dict.fromkeys(name if one == before else one for one in key.limits.nodes)
            limits = replace(key.limits, nodes=tuple(names))
            await context.keys.set_limits(key.id, limits)
            detail = {"name": key.name, "nodes": list(names)}
            await context.audit.record(actor, "key.change", key.id, **detail)


async def drain_node(context: Context, call: Call) -> NodeView:
    """No new requests for it; what is in flight ends by itself."""
    return await _set_drained(context, call, drained=True)


async def undrain_node(context: Context, call: Call) -> NodeView:
    """New requests for it again."""
    return await _set_drained(context, call, drained=False)


async def remove_node(context: Context, call: Call) -> NodeView:
    """Out, and in no more without a new invite."""
    node = _find(context, call)
    before = node_view(node)
    await context.fleet.remove(node.record.id)
    await context.audit.record(call.actor, "node.remove", before.id, name=before.name)
    return before


async def _set_drained(context: Context, call: Call, *, drained: bool) -> NodeView:
    node = _find(context, call)
    await context.fleet.drain(node.record.id, drained=drained)
    action = "node.drain" if drained else "node.undrain"
    await context.audit.record(call.actor, action, node.record.id, name=node.record.name)
    return node_view(node)


def _find(context: Context, call: Call) -> LiveNode:
    node = context.fleet.find(call.path["node"])
    if node is None:
        raise no_such_node(call.path["node"])
    return node


ENDPOINTS: Final = (
    Endpoint("GET", "/nodes", list_nodes, "List the nodes", NodeList),
    Endpoint("GET", "/nodes/{node}", get_node, "Look at a node", NodeView),
    Endpoint(
        "GET", "/nodes/{node}/history", node_history, "Look at a node's last hour", NodeHistory
    ),
    Endpoint(
        "PATCH", "/nodes/{node}", change_node, "Rename a node, set its slots", NodeView, ChangeNode
    ),
    Endpoint("POST", "/nodes/{node}/drain", drain_node, "Give a node no new requests", NodeView),
    Endpoint("POST", "/nodes/{node}/undrain", undrain_node, "Give it requests again", NodeView),
    Endpoint("DELETE", "/nodes/{node}", remove_node, "Remove a node", NodeView),
)
