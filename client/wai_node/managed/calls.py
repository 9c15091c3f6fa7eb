"""Answer the relay's CALLs `model.*` (SPEC section 6).

The parameters are validated here and given to the supervisor, whose results become plain maps for
the REPLY. Every refusal is a `WaiError` whose text is shown to the admin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from wai_node.models.hub import FoundModel
from wai_protocol.errors import Fault, RequestError, WaiError

from .entry import DeploymentStatus, QuantFit
from .load_policy import LoadPolicy
from .options import ServeOptions
from .pulls.pulls import Pulls
from .replies import first_rows, newest_lines, shortened
from .supervisor import Supervisor

EVENT: Final = "deployment"

MAX_REASON_CHARS: Final = 2000
MAX_REPO_CHARS: Final = 200  # publisher/name; a longer name can't be deployed


class Search(msgspec.Struct, forbid_unknown_fields=True):
    """`model.search`: GGUF repositories on the hub."""

    query: str
    limit: int = 20


class FitCall(msgspec.Struct, forbid_unknown_fields=True):
    """`model.fit`: how the quantisations of `model` (publisher/name[:QUANT]) fit."""

    model: str
    context: int | None = None
    slots: int | None = None
    cache_type: str = "f16"
    gpu_layers: int | None = None
    priority: int = 0
    cpu_moe: int | None = None
    gpus: tuple[int, ...] = ()


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The options of a deployment, by their names in `ServeOptions`; what is not given stays as it
    is. Null is the default where there is no other word for it."""

    cache_type: str | None = None
    gpu_layers: int | msgspec.UnsetType | None = msgspec.UNSET
    flash_attention: str | None = None
    engine_flags: tuple[str, ...] | None = None
    cpu_moe: int | msgspec.UnsetType | None = msgspec.UNSET
    gpus: tuple[int, ...] | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_format: str | None = None
    environment: tuple[str, ...] | None = None
    draft_max: int | msgspec.UnsetType | None = msgspec.UNSET
    alias: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the options that are given, as `ServeOptions` has them."""
        found = {name: getattr(self, name) for name in Options.__struct_fields__}
        nullable = ("gpu_layers", "cpu_moe", "draft_max")
        if found["gpus"] is None:
            found["gpus"] = ()
        return {
            name: value
            for name, value in found.items()
            if value is not msgspec.UNSET and (value is not None or name in nullable)
        }


class Deploy(Options, forbid_unknown_fields=True):
    """`model.deploy`: serve `model` from now on."""

    model: str
    context: int | None = None
    slots: int | None = None
    idle_unload_s: float | None = None
    install_engine: bool = False
    mmproj: str | None = None
    load: str | None = None
    priority: int | None = None
    lora: str | None = None
    draft: str | None = None


class ListCall(msgspec.Struct, forbid_unknown_fields=True):
    """`model.list`: all deployments, or that of `model` alone."""

    model: str | None = None


class Remove(msgspec.Struct, forbid_unknown_fields=True):
    """`model.remove`: stop serving `model` and delete its files."""

    model: str


class SetContext(msgspec.Struct, forbid_unknown_fields=True):
    """`model.context`: serve `model` with another context."""

    model: str
    context: int
    slots: int | None = None


class Edit(Options, forbid_unknown_fields=True):
    """`model.edit`: serve `model` otherwise; what is not given stays as it is."""

    model: str
    context: int | None = None
    slots: int | None = None
    idle_unload_s: float | msgspec.UnsetType | None = msgspec.UNSET
    load: str | None = None
    priority: int | None = None


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """`model.load`: load `model` now, or have the server that has it do so."""

    model: str


class Unload(msgspec.Struct, forbid_unknown_fields=True):
    """`model.unload`: free the memory of `model`, or have the server that has it do so."""

    model: str


class Retry(msgspec.Struct, forbid_unknown_fields=True):
    """`model.retry`: try `model`, which has failed, once more."""

    model: str


class Logs(msgspec.Struct, forbid_unknown_fields=True):
    """`model.logs`: the last lines that its server printed."""

    model: str
    lines: int = 100


CALLS: Final[dict[str, type[msgspec.Struct]]] = {
    "model.search": Search,
    "model.fit": FitCall,
    "model.deploy": Deploy,
    "model.list": ListCall,
    "model.remove": Remove,
    "model.context": SetContext,
    "model.edit": Edit,
    "model.logs": Logs,
    "model.load": Load,
    "model.unload": Unload,
    "model.retry": Retry,
}


class ModelCalls:
    """Answers CALLs. `answer` is a `wai_node.calls.CallHandler`."""

    def __init__(self, supervisor: Supervisor, pulls: Pulls | None = None) -> None:
        self._supervisor, self._pulls = supervisor, pulls

    async def answer(
        self, method: str, params: dict[str, Any], tell: Callable[[str, Any], None]
    ) -> Any:
        """Carry out a CALL and return the value of its REPLY. Raises `WaiError`."""
        kind = CALLS.get(method)
        if kind is None:
            raise WaiError(f"this node does not know `{method}`; update it", Fault.ROUTE_REFUSED)
        try:
            asked = msgspec.convert(params, kind)
        except msgspec.ValidationError as error:
            raise RequestError(f"{method}: {error}") from error
        model = getattr(asked, "model", None)
        if model is not None and self._pulls is not None and self._pulls.takes(model):
            return await self._do_by_server(self._pulls, asked)
        return await self._do(asked)

    async def _do_by_server(self, pulls: Pulls, asked: msgspec.Struct) -> Any:
        """Carry out what is asked of a model that a server beside the node has, or is to have."""
        match asked:
            case Deploy(model, context, slots, idle_unload_s, install):
                policy = asked.load is not None or asked.priority is not None
                mine = asked.mmproj or asked.lora or asked.draft or policy or asked.given()
                if slots or install or mine:
                    raise RequestError(
                        f"{model.partition(':')[0]} decides itself how it serves a model: only the"
                        " idle time can be given, and of LM Studio's the context"
                    )
                if idle_unload_s is not None:
                    LoadPolicy("on_demand", idle_unload_s)  # raises if it makes no sense
                return {"model": await pulls.deploy(model, context, idle_unload_s)}
            case Remove(model):
                await pulls.remove(model)
            case Load(model):
                await pulls.load(model)
            case Unload(model):
                await pulls.unload(model)
            case Retry(model):
                await pulls.retry(model)
            case ListCall(str() as model):
                return [deployment_map(s) for s in pulls.deployed() if s.alias == model]
            case _:
                raise RequestError(
                    "this can't be asked of a model on a server that is not the node's own: it has"
                    " its own settings and its own log"
                )
        return self._listed()

    def _listed(self) -> list[dict[str, Any]]:
        found = self._supervisor.deployed()
        if self._pulls is not None:
            found += self._pulls.deployed()
        return shortened([deployment_map(status) for status in found])

    async def _do(self, asked: msgspec.Struct) -> Any:
        supervisor = self._supervisor
        match asked:
            case Search(query, limit):
                found = await supervisor.search(query, max(1, min(limit, 50)))
                return first_rows([_found(model) for model in found])
            case FitCall(model, context, slots, cache_type, gpu_layers, priority):
                options = ServeOptions(
                    cache_type, gpu_layers, cpu_moe=asked.cpu_moe, gpus=asked.gpus
                )
                policy = LoadPolicy(priority=priority)
                fits = await supervisor.fit(model, context, slots, options, policy)
                return first_rows([_fit(quant) for quant in fits])
            case Deploy(model, context, slots, idle_unload_s, install):
                given = asked.given()
                alias = await supervisor.deploy(
                    *(model, context, slots, idle_unload_s),
                    load=asked.load,
                    priority=asked.priority,
                    options=ServeOptions().changed(**given) if given else None,
                    mmproj=asked.mmproj,
                    lora=asked.lora,
                    draft=asked.draft,
                    install_engine=install,
                )
                return {"model": alias}
            case Edit(model, context, slots, idle_unload_s):
                policy = supervisor.policy_of(model).changed(
                    asked.load, asked.priority, idle_unload_s
                )
                await self._edit(asked, context, slots)
                await supervisor.set_policy(model, policy)
            case Remove(model):
                await supervisor.remove(model)
            case Retry(model):
                await supervisor.retry(model)
            case SetContext(model, context, slots):
                await supervisor.edit(model, context, slots)
            case Logs(model, lines):
                return newest_lines(await supervisor.logs(model, lines))
            case ListCall(str() as model):
                return [deployment_map(s) for s in supervisor.deployed() if s.alias == model]
            case Load(model):
                supervisor.load(model)
            case Unload(model):
                supervisor.unload(model)
        return self._listed()

    async def _edit(self, asked: Edit, context: int | None, slots: int | None) -> None:
        given = asked.given()
        if context is None and slots is None and not given:
            return
        before = self._supervisor.options_of(asked.model)
        await self._supervisor.edit(asked.model, context, slots, before.changed(**given))


def deployment_map(status: DeploymentStatus) -> dict[str, Any]:
    """Return a deployment as the map that is sent to the relay."""
    progress = status.progress
    return {
        "model": status.alias,
        "state": status.state.value,
        "reason": status.reason[:MAX_REASON_CHARS],
        "log_tail": [line[:500] for line in status.log_tail],
        "swap_error": status.swap_error[:MAX_REASON_CHARS],
        "context": status.context_tokens,
        "context_served": status.context_served,
        "slots": status.slots,
        "changing": status.changing,
        "purpose": status.purpose,
        "mmproj": status.mmproj,
        "lora": status.lora,
        "load": status.policy.load,
        "idle_unload_s": status.policy.idle_unload_s,
        "priority": status.policy.priority,
        "load_ms": round(status.load_s * 1000),
        "cache_type": status.options.cache_type,
        "gpu_layers": status.options.gpu_layers,
        "flash_attention": status.options.flash_attention,
        "engine_flags": list(status.options.engine_flags),
        "cpu_moe": status.options.cpu_moe,
        "gpus": list(status.options.gpus),
        "reasoning_format": status.options.reasoning_format,
        "environment": list(status.options.environment),
        "draft": status.draft,
        "draft_max": status.options.draft_max,
        "alias": status.options.alias,
        "size_bytes": status.size_bytes,
        "in_flight": status.in_flight,
        "served_by": status.served_by,
        "called": status.called,
        "estimated_bytes": status.estimated_bytes,
        "seen_bytes": status.seen_bytes,
        "progress": None
        if progress is None
        else {
            "done_bytes": progress.done_bytes,
            "total_bytes": progress.total_bytes,
            "rate_bps": progress.rate_bps,
            "eta_s": progress.eta_s,
        },
    }


def _found(model: FoundModel) -> dict[str, Any]:
    return {
        "repo": model.repo[:MAX_REPO_CHARS],
        "downloads": model.downloads,
        "likes": model.likes,
        "gated": model.gated,
    }


def _fit(quant: QuantFit) -> dict[str, Any]:
    fit = quant.fit
    return {
        "quant": quant.quant,
        "size_bytes": quant.size_bytes,
        "verdict": fit.verdict.value,
        "low_bytes": fit.low_bytes,
        "high_bytes": fit.high_bytes,
        "largest_context": fit.largest_context,
        "gpu_layers": fit.placement.gpu_layers,
        "cpu_moe": fit.placement.cpu_moe,
        "reason": fit.reason,
    }
