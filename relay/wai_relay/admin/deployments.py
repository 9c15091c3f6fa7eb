"""Models: search the hub, see what fits, deploy, swap the context, remove, read logs.

The work is the nodes': each endpoint asks one (or all) by a CALL over its session and passes on
what it says. What is wanted of a node is on that node's disk, not here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from msgspec import UNSET, structs

from wai_api.bounds import MAX_CONTEXT_TOKENS, MAX_FOUND, MAX_GPU_LAYERS, MAX_SLOTS
from wai_api.models import (
    ChangeDeployment,
    CreateDeployment,
    CreateDeployments,
    DeploymentList,
    DeploymentView,
    DeploymentWish,
    FitList,
    FoundModels,
    FoundModelView,
    LogLines,
    NodeFit,
    PlacedList,
    PlacedView,
    QuantFitView,
)
from wai_api.patterns import GPUS
from wai_protocol.errors import Fault, NodeUnavailable, RequestError, WaiError
from wai_relay.fleet.node import CALL_TIMEOUT_S
from wai_relay.fleet.registry import no_such_node

from .context import Context
from .deployed import checked, views_of
from .endpoint import Call, Endpoint, Query
from .live_nodes import LiveNode
from .replicas import Choice, rank

_NULLABLE: Final = ("gpu_layers", "cpu_moe", "gpus", "draft_max", "idle_unload_s")
_OPTIONS: Final = (
    *("cache_type", "gpu_layers", "flash_attention", "engine_flags", "cpu_moe", "gpus"),
    *("reasoning_format", "environment", "draft_max", "alias"),
)
_FIT_OPTIONS: Final = ("cache_type", "gpu_layers", "cpu_moe")
_POLICY: Final = ("load", "priority")
HUB_TIMEOUT_S: Final = 45.0
"""For what makes the node ask the hub, which may take 30 s to say that it is down."""

DIALS_S: Final = 5.0
"""A node whose service was started dials within that."""

LOOKS: Final = 100


async def search(context: Context, call: Call) -> FoundModels:
    """GGUF models on the hub, the most downloaded first. A node does the asking: the one that is
    named, or the first that reaches the hub."""
    params = {"query": call.query["q"], "limit": call.query.get("limit", 20)}
    loop = asyncio.get_running_loop()
    until = loop.time() + HUB_TIMEOUT_S
    failure: WaiError | None = None
    for node in _asked_or_all(context, call.query.get("node")):
        try:
            left_s = until - loop.time()
            found = await node.call("model.search", params, timeout_s=left_s)
            return FoundModels(checked(found, tuple[FoundModelView, ...], node))
        except WaiError as error:
            failure = failure or WaiError(f"{node.record.name}: {error}", error.fault)
        if loop.time() >= until:
            break
    assert failure is not None  # some node was asked
    raise failure


async def fit(context: Context, call: Call) -> FitList:
    """How each quantisation fits each node, or the one that is named."""
    name = call.query.get("node")
    nodes = [_connected(context, name)] if name else _deployable(context)
    params: dict[str, Any] = {
        "model": call.query["repo"],
        "context": call.query.get("context"),
        "slots": call.query.get("slots"),
        **{name: call.query[name] for name in _FIT_OPTIONS if name in call.query},
        **({"gpus": [*map(int, call.query["gpus"].split(","))]} if "gpus" in call.query else {}),
    }
    rows = await asyncio.gather(*(_fit_on(node, params) for node in nodes))
    if name and rows[0].error is not None:
        raise RequestError(rows[0].error)
    return FitList(tuple(rows))


async def _fit_on(node: LiveNode, params: dict[str, Any]) -> NodeFit:
    try:
        found = await node.call("model.fit", params, timeout_s=HUB_TIMEOUT_S)
        quants = checked(found, tuple[QuantFitView, ...], node)
    except WaiError as error:
        return NodeFit(node=node.record.name, error=str(error))
    return NodeFit(node=node.record.name, quants=quants)


async def list_deployments(context: Context, call: Call) -> DeploymentList:
    """What is deployed on all nodes that are connected."""
    return DeploymentList(tuple(await all_deployed(context)))


async def all_deployed(context: Context) -> list[DeploymentView]:
    """What the nodes that are connected say is deployed on them."""
    nodes = _deployable(context)
    answers = await asyncio.gather(*(_deployed_on(context, node) for node in nodes))
    return [view for answer in answers for view in answer]


async def _deployed_on(context: Context, node: LiveNode) -> list[DeploymentView]:
    try:
        return await context.feed.deployed.ask(node)
    except WaiError:
        return []  # it went away just now, or is older than deployments


async def deploy(context: Context, call: Call) -> DeploymentView:
    """Tell a node to serve a model; it is being downloaded when this returns."""
    wanted: CreateDeployment = call.body
    return await _deploy_on(context, call, wanted.node, wanted)


async def deploy_several(context: Context, call: Call) -> PlacedList:
    """Have several nodes serve a model; one that fails does not keep the others from it."""
    wanted: CreateDeployments = call.body
    names = wanted.nodes or tuple(node.record.name for node in _deployable(context))
    names = tuple(dict.fromkeys(names))
    if not names:
        raise NodeUnavailable("no node is connected that may deploy models; let one join first")
    if wanted.replicas is None:
        named = [Choice(name, "it was named") for name in names]
        return PlacedList(tuple(await _deploy_on_all(context, call, named, wanted)))
    params = _fit_params(wanted)
    rows, deployed = await asyncio.gather(
        asyncio.gather(*(_fit_by_name(context, name, params) for name in names)),
        all_deployed(context),
    )
    ranking = rank(rows, deployed, wanted.model)
    exact = structs.replace(wanted, model=ranking.model)
    placed: list[PlacedView] = []
    waiting = list(ranking.best)
    while waiting and (missing := wanted.replicas - _count_deployed(placed)) > 0:
        now, waiting = waiting[:missing], waiting[missing:]  # after a failure the next best
        placed += await _deploy_on_all(context, call, now, exact)
    left = [PlacedView(node=o.node, outcome="left_out", reason=o.reason) for o in waiting]
    return PlacedList((*placed, *left, *ranking.left_out))


def _count_deployed(placed: list[PlacedView]) -> int:
    return sum(view.outcome == "deployed" for view in placed)


async def _deploy_on_all(
    context: Context, call: Call, chosen: Iterable[Choice], wanted: DeploymentWish
) -> list[PlacedView]:
    return await asyncio.gather(*(_try_on(context, call, one, wanted) for one in chosen))


async def _try_on(
    context: Context, call: Call, chosen: Choice, wanted: DeploymentWish
) -> PlacedView:
    try:
        view = await _deploy_on(context, call, chosen.node, wanted)
    except WaiError as error:
        return PlacedView(node=chosen.node, outcome="failed", reason=str(error))
    return PlacedView(node=chosen.node, outcome="deployed", reason=chosen.reason, deployment=view)


def _fit_params(wanted: DeploymentWish) -> dict[str, Any]:
    params: dict[str, Any] = {
        "model": wanted.model,
        "context": wanted.context,
        "slots": wanted.slots,
    }
    given = {name: getattr(wanted, name) for name in (*_FIT_OPTIONS, "gpus", "priority")}
    return params | {name: value for name, value in given.items() if value is not None}


async def _fit_by_name(context: Context, name: str, params: dict[str, Any]) -> NodeFit:
    try:
        node = _may_deploy(_connected(context, name))
    except WaiError as error:
        return NodeFit(node=name, error=str(error))
    return await _fit_on(node, params)


def _may_deploy(node: LiveNode) -> LiveNode:
    if not node.record.may_deploy:
        raise RequestError(
            f"node {node.record.name} joined with an invite that allows no deployments",
            Fault.FORBIDDEN,
        )
    return node


async def _deploy_on(
    context: Context, call: Call, name: str, wanted: DeploymentWish
) -> DeploymentView:
    await _wait_until_it_dials(context, name)
    node = _may_deploy(_connected(context, name))
    params: dict[str, Any] = {
        "model": wanted.model,
        "context": wanted.context,
        "slots": wanted.slots,
        "idle_unload_s": wanted.idle_unload_s,
    }
    # what older nodes don't know is sent only if it is asked for
    if wanted.install_engine:
        params["install_engine"] = True
    for name in (*_OPTIONS, *_POLICY, "mmproj", "lora", "draft"):
        if (value := getattr(wanted, name)) is not None:
            params[name] = value
    answer = await node.call("model.deploy", params, timeout_s=HUB_TIMEOUT_S)
    alias = answer.get("model") if isinstance(answer, dict) else None
    await context.audit.record(
        call.actor, "model.deploy", node.record.id, name=node.record.name, model=str(alias)
    )
    return await _one(node, str(alias))


async def edit(context: Context, call: Call) -> DeploymentView:
    """Serve a model otherwise, without dropping a request."""
    wanted: ChangeDeployment = call.body
    node, alias = _connected(context, call.path["node"]), call.query["model"]
    changes = {
        name: value
        for name in ("context", "slots", *_OPTIONS, *_POLICY)
        if (value := getattr(wanted, name)) is not None and value is not UNSET
    }
    for name in _NULLABLE:
        if (value := getattr(wanted, name)) is not UNSET:
            changes[name] = value
    if not changes:
        raise RequestError("nothing is to be changed: name what shall be otherwise")
    plain = wanted.context is not None and not changes.keys() - {"context", "slots"}
    method = "model.context" if plain else "model.edit"  # older nodes know the first only
    listed = await node.call(method, {"model": alias, **changes})
    await context.audit.record(
        call.actor, method, node.record.id, name=node.record.name, model=alias, **changes
    )
    return _pick(views_of(node, listed), alias)


async def remove(context: Context, call: Call) -> DeploymentList:
    """Serve a model no more, and delete its files; what is left on that node."""
    node, alias = _connected(context, call.path["node"]), call.query["model"]
    listed = await node.call("model.remove", {"model": alias})
    await context.audit.record(
        call.actor, "model.remove", node.record.id, name=node.record.name, model=alias
    )
    return DeploymentList(tuple(views_of(node, listed)))


async def retry(context: Context, call: Call) -> DeploymentView:
    """Have a node try a deployment again that has failed."""
    return await _asked_of(context, call, "model.retry", timeout_s=HUB_TIMEOUT_S)


async def load(context: Context, call: Call) -> DeploymentView:
    """Have the server that has a model load it now."""
    return await _asked_of(context, call, "model.load")


async def unload(context: Context, call: Call) -> DeploymentView:
    """Have the server that has a model free its memory; a request loads it again."""
    return await _asked_of(context, call, "model.unload")


async def _asked_of(
    context: Context, call: Call, method: str, *, timeout_s: float = CALL_TIMEOUT_S
) -> DeploymentView:
    """Ask the node for `method` of a model and nothing else; the model as it is then."""
    node, alias = _connected(context, call.path["node"]), call.query["model"]
    listed = await node.call(method, {"model": alias}, timeout_s=timeout_s)
    await context.audit.record(
        call.actor, method, node.record.id, name=node.record.name, model=alias
    )
    return _pick(views_of(node, listed), alias)


async def read_logs(context: Context, call: Call) -> LogLines:
    """The last lines that a model's server printed."""
    node, alias = _connected(context, call.path["node"]), call.query["model"]
    params = {"model": alias, "lines": call.query.get("lines", 100)}
    return LogLines(checked(await node.call("model.logs", params), tuple[str, ...], node))


async def _one(node: LiveNode, alias: str) -> DeploymentView:
    return _pick(views_of(node, await node.call("model.list", {"model": alias})), alias)


def _pick(views: list[DeploymentView], alias: str) -> DeploymentView:
    for view in views:
        if view.model == alias:
            return view
    raise WaiError(f"the node has just lost {alias}")


def _connected(context: Context, name: str) -> LiveNode:
    node = context.fleet.find(name)
    if node is None:
        raise no_such_node(name)
    if not node.connected:
        raise NodeUnavailable(f"node {name} is not connected; try again when it is back")
    return node


async def _wait_until_it_dials(context: Context, name: str) -> None:
    """Wait a moment for a node that may have been installed just now."""
    node = context.fleet.find(name)
    for _ in range(LOOKS):
        if node is None or node.connected:
            return
        await asyncio.sleep(DIALS_S / LOOKS)


def _deployable(context: Context) -> list[LiveNode]:
    return [node for node in context.fleet.nodes() if node.connected and node.record.may_deploy]


def _asked_or_all(context: Context, name: str | None) -> list[LiveNode]:
    if name:
        return [_connected(context, name)]
    nodes = _deployable(context)
    if not nodes:
        raise NodeUnavailable("no node is connected that may deploy models; let one join first")
    return nodes


_MODEL: Final = Query("model", str, "the model's id, as the list shows it", needed=True)
ENDPOINTS: Final = (
    Endpoint(
        *("GET", "/models/search", search, "Search the hub", FoundModels),
        query=(
            Query("q", str, "words to look for", needed=True),
            Query("limit", int, "at most so many", 1, MAX_FOUND),
            Query("node", str, "the node that asks; else any"),
        ),
    ),
    Endpoint(
        *("GET", "/models/fit", fit, "See what fits where", FitList),
        query=(
            Query("repo", str, "publisher/name, with :QUANT for one of them", needed=True),
            Query("node", str, "only on this node"),
            Query("context", int, "tokens per slot", 1, MAX_CONTEXT_TOKENS),
            Query("slots", int, "requests at once", 1, MAX_SLOTS),
            Query("cache_type", str, "f16, q8_0 or q4_0: the numbers of the K/V cache"),
            Query("gpu_layers", int, "so many layers on the GPU", 0, MAX_GPU_LAYERS),
            Query("cpu_moe", int, "the experts of so many layers in RAM", 0, MAX_GPU_LAYERS),
            Query("gpus", str, "the numbers of the GPUs to use, as 0,1", pattern=GPUS),
        ),
    ),
    Endpoint("GET", "/deployments", list_deployments, "List deployed models", DeploymentList),
    Endpoint(
        *("POST", "/deployments", deploy, "Deploy a model", DeploymentView, CreateDeployment, 202)
    ),
    Endpoint(
        *("POST", "/deployments/several", deploy_several, "Deploy a model on several nodes"),
        answer=PlacedList,
        body=CreateDeployments,
        status=202,
    ),
    Endpoint(
        *("PATCH", "/deployments/{node}", edit, "Change a deployment", DeploymentView),
        body=ChangeDeployment,
        query=(_MODEL,),
    ),
    Endpoint(
        *("DELETE", "/deployments/{node}", remove, "Remove a model", DeploymentList),
        query=(_MODEL,),
    ),
    Endpoint(
        *("POST", "/deployments/{node}/retry", retry, "Try a failed model again", DeploymentView),
        query=(_MODEL,),
    ),
    Endpoint(
        *("POST", "/deployments/{node}/load", load, "Load a model now", DeploymentView),
        query=(_MODEL,),
    ),
    Endpoint(
        *("POST", "/deployments/{node}/unload", unload, "Free a model's memory", DeploymentView),
        query=(_MODEL,),
    ),
    Endpoint(
        *("GET", "/deployments/{node}/logs", read_logs, "Read a model's log", LogLines),
        query=(_MODEL, Query("lines", int, "at most so many", 1, 1000)),
    ),
)
