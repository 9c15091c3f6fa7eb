"""Nodes: list, look, drain, remove."""

from __future__ import annotations

from typing import Final

from wai_relay.fleet.registry import no_such_node

from .context import Context, LiveNode
from .endpoint import Call, Endpoint
from .types import ModelView, NodeList, NodeView


async def list_nodes(context: Context, call: Call) -> NodeList:
    """Every node that has joined."""
    return NodeList(tuple(node_view(node) for node in context.fleet.nodes()))


async def get_node(context: Context, call: Call) -> NodeView:
    """One node, by name or id."""
    return node_view(_find(context, call))


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
    context.fleet.drain(node.record.id, drained=drained)
    action = "node.drain" if drained else "node.undrain"
    await context.audit.record(call.actor, action, node.record.id, name=node.record.name)
    return node_view(node)


def _find(context: Context, call: Call) -> LiveNode:
    node = context.fleet.find(call.path["node"])
    if node is None:
        raise no_such_node(call.path["node"])
    return node


def node_view(node: LiveNode) -> NodeView:
    """A node as the API shows it; what it said of itself only while it is there."""
    there = node.state != "offline"
    serving = tuple(
        ModelView(**{name: getattr(model, name) for name in ModelView.__struct_fields__})
        for model in (node.status.models if there else ())
    )
    # What is downloading or starting takes no request: its slots are none that anybody can have.
    ready = [model for model in serving if model.ready]
    told = [model.slots_total for model in ready if model.slots_total is not None]
    return NodeView(
        id=node.record.id,
        name=node.record.name,
        state=node.state,
        models=tuple(dict.fromkeys(model.id for model in serving)),
        serving=serving,
        slots_total=sum(told) if told else None,
        slots_busy=sum(model.slots_busy for model in ready),
        queued=sum(model.queued for model in serving),
        reconnects=node.reconnects,
        copied=node.copied,
        connected_at=node.connected_at,
        version=node.status.version,
        agent=node.agent,
        tags=node.record.tags,
        may_deploy=node.record.may_deploy,
        joined_at=node.record.created_at,
        detail=node.status.detail,
    )


ENDPOINTS: Final = (
    Endpoint("GET", "/nodes", list_nodes, "List the nodes", NodeList),
    Endpoint("GET", "/nodes/{node}", get_node, "Look at a node", NodeView),
    Endpoint("POST", "/nodes/{node}/drain", drain_node, "Give a node no new requests", NodeView),
    Endpoint("POST", "/nodes/{node}/undrain", undrain_node, "Give it requests again", NodeView),
    Endpoint("DELETE", "/nodes/{node}", remove_node, "Remove a node", NodeView),
)
