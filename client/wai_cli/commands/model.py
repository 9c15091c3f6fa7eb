"""`wai model search|fit|deploy|list|context|edit|remove|logs|load|unload`: the models on nodes."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final
from urllib.parse import quote, urlencode

from wai_api.bounds import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    MAX_CONTEXT_TOKENS,
    MAX_FOUND,
    MAX_GPU_LAYERS,
    MAX_IDLE_S,
    MAX_SLOTS,
    MIN_IDLE_S,
)
from wai_cli.client.admin_client import HUB_TIMEOUT_S, AdminClient
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.values import (
    AUTO,
    NONE,
    auto_or_whole,
    between,
    count,
    named,
    none_or,
    seconds,
)
from wai_cli.output.deployment import CONNECTED, follow, note, served_text
from wai_cli.output.progress import size_text
from wai_cli.output.tables import plain, print_json, print_lines, print_table, say
from wai_protocol.errors import NodeUnavailable, RequestError, WaiError

DEFAULT_CONTEXT, DEFAULT_SLOTS = 8192, 2  # the node's own

_EXAMPLES: Final = """\
examples:
  wai model search qwen3 4b
  wai model fit unsloth/Qwen3-4B-GGUF --node box
  wai model deploy unsloth/Qwen3-4B-GGUF:Q4_K_M --node box --context 16384 --slots 2
  wai model edit unsloth/Qwen3-4B-GGUF:Q4_K_M --node box --context 32768 --cache-type q8_0
  wai model deploy ollama:qwen3:8b --node box      on the Ollama that runs there
  wai model remove unsloth/Qwen3-4B-GGUF:Q4_K_M --node box"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai model`."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    search = _action(actions, "search", "look for GGUF models on Hugging Face", _search)
    search.add_argument("words", metavar="WORD", nargs="+", help="what to look for")
    search.add_argument(
        "--limit",
        metavar="N",
        type=between(1, MAX_FOUND),
        default=20,
        help="show at most N (default 20)",
    )
    fit = _action(actions, "fit", "see which quantisations fit which node", _fit)
    fit.add_argument("repo", metavar="REPO", help="publisher/name, or publisher/name:QUANT")
    fit.add_argument("--node", metavar="NAME", help="only on this node")
    _add_load(fit)
    fit.add_argument("--cache-type", choices=CACHE_TYPES, help="the numbers of the K/V cache")
    deploy = _action(actions, "deploy", "have a node download and serve a model", _deploy)
    deploy.add_argument(
        "model",
        metavar="REPO[:QUANT]",
        type=named,
        help="publisher/name[:QUANT]; or ./FILE.gguf: a file on the node, in a folder that its"
        " owner lists in its settings; or ollama:NAME[:TAG], lmstudio:publisher/name: on the server"
        " that runs there",
    )
    deploy.add_argument(
        "--node", metavar="NAME", type=named, required=True, help="the node to serve it"
    )
    _add_load(deploy)
    _add_options(deploy)
    deploy.add_argument(
        "--idle-unload",
        metavar="SECONDS",
        type=seconds(MIN_IDLE_S, MAX_IDLE_S),
        help="unload it after so many idle seconds; the next request loads it again",
    )
    deploy.add_argument(
        "--mmproj",
        metavar="NAME",
        type=named,
        help="the projector by which it sees images, by its file's name or precision, or none"
        " (default: the best one of the repository)",
    )
    deploy.add_argument(
        "--lora",
        metavar="REPO[:QUANT]",
        type=named,
        help="a LoRA adapter in GGUF that was made for this model, or ./FILE.gguf on the node",
    )
    deploy.add_argument(
        "--engine",
        choices=("llama-server", "vllm"),
        default="llama-server",
        help="vllm: a repository of safetensors, on the vLLM that is installed on the node",
    )
    deploy.add_argument(
        "--install-engine",
        action="store_true",
        help="if the node has no llama-server, have it install one first",
    )
    _add_wait(deploy)
    listing = _action(actions, "list", "list the deployed models", _list)
    context = _action(actions, "context", "change a model's context while it serves", _context)
    edit = _action(actions, "edit", "change how a model is served while it serves", _edit)
    remove = _action(actions, "remove", "stop serving a model and delete its files", _remove)
    logs = _action(actions, "logs", "read what a model's server printed", _logs)
    load = _action(actions, "load", "have Ollama or LM Studio load a model now", _load)
    unload = _action(actions, "unload", "have it free a model's memory", _unload)
    for action in (context, edit, remove, logs, load, unload):
        action.add_argument(
            "model", metavar="MODEL", type=named, help="as `wai model list` shows it"
        )
        action.add_argument(
            "--node", metavar="NAME", type=named, required=True, help="the node that has it"
        )
    _add_load(context, "tokens per slot", "requests at once (default: as now)", required=True)
    _add_wait(context)
    _configure_edit(edit)
    logs.add_argument(
        "--lines", metavar="N", type=count, default=100, help="show at most N (default 100)"
    )
    for action in (search, fit, deploy, listing, context, edit, remove, logs, load, unload):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _configure_edit(edit: argparse.ArgumentParser) -> None:
    _add_load(edit, "per slot", "requests at once")
    _add_options(edit)
    edit.add_argument(
        "--idle-unload",
        metavar="SECONDS",
        type=none_or(seconds(MIN_IDLE_S, MAX_IDLE_S)),
        help="unload it after so many idle seconds; none: never",
    )
    _add_wait(edit)


def _action(actions: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    action.set_defaults(run=run)
    return action


def _add_load(
    parser: argparse.ArgumentParser,
    context: str = f"tokens per slot (default {DEFAULT_CONTEXT})",
    slots: str = f"requests at once (default {DEFAULT_SLOTS})",
    *,
    required: bool = False,
) -> None:
    """`--context` and `--slots`, with these help texts; `required`: the first must be given."""
    parser.add_argument(
        "--context",
        metavar="TOKENS",
        type=between(1, MAX_CONTEXT_TOKENS),
        required=required,
        help=context,
    )
    parser.add_argument("--slots", metavar="N", type=between(1, MAX_SLOTS), help=slots)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a deployment, by the words that the API has for them."""
    parser.add_argument(
        "--cache-type",
        choices=CACHE_TYPES,
        help="the numbers of the K/V cache: q8_0 takes half of f16's memory, q4_0 a quarter",
    )
    parser.add_argument(
        "--gpu-layers",
        metavar="N",
        type=auto_or_whole(0, MAX_GPU_LAYERS),
        help="so many layers on the GPU; auto: as many as fit",
    )
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, help="(default: auto)")
    parser.add_argument(
        "--engine-flag",
        dest="engine_flags",
        metavar="FLAG",
        action="append",
        help="add it to llama-server's (repeat for more; write --engine-flag=--flag), or none; only"
        " if the node's owner allows that",
    )


def _options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as the API takes them."""
    given: dict[str, Any] = {
        name: value
        for name in ("cache_type", "gpu_layers", "flash_attention", "engine_flags")
        if (value := getattr(parsed, name)) is not None
    }
    if given.get("gpu_layers") == AUTO:
        given["gpu_layers"] = None
    if given.get("engine_flags") == [NONE]:
        given["engine_flags"] = []
    return given


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="don't wait until it is served")


def _search(parsed: argparse.Namespace) -> int:
    query = urlencode({"q": " ".join(parsed.words), "limit": parsed.limit})
    with AdminClient(find_target(parsed), HUB_TIMEOUT_S) as relay:
        found = relay.get(f"/models/search?{query}")["data"]
    if parsed.json:
        print_json(found)
        return 0
    print_table(
        ("REPOSITORY", "DOWNLOADS", "LIKES", ""),
        [(m["repo"], m["downloads"], m["likes"], "gated" if m["gated"] else "") for m in found],
        empty="nothing found; try fewer words",
    )
    return 0


def _fit(parsed: argparse.Namespace) -> int:
    asked = {
        "repo": parsed.repo,
        "node": parsed.node,
        "context": parsed.context,
        "slots": parsed.slots,
        "cache_type": parsed.cache_type,
    }
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    with AdminClient(find_target(parsed), HUB_TIMEOUT_S) as relay:
        found = relay.get(f"/models/fit?{query}")["data"]
    if parsed.json:
        print_json(found)
    if not any(row["quants"] for row in found):
        raise _no_answer_error(found)
    if parsed.json:
        return 0
    print(
        f"for {parsed.slots or DEFAULT_SLOTS} slots of {parsed.context or DEFAULT_CONTEXT} tokens, "
        "or of as many as the model was trained for:"
    )
    print_table(
        ("NODE", "QUANT", "FILES", "NEEDS", "FITS", "LARGEST CONTEXT"),
        [_fit_row(row["node"], quant) for row in found for quant in row["quants"]],
        empty="",
    )
    print_lines([text for row in found for text in _refusal_lines(row)])
    return 0


def _no_answer_error(found: list[dict[str, Any]]) -> WaiError:
    errors = {row["error"]: row["node"] for row in found if row["error"]}
    if not errors:
        return NodeUnavailable(
            "no node is connected that may deploy models; let one join with `wai invite create`"
        )
    if len(errors) == 1:
        return RequestError(next(iter(errors)))
    return RequestError("; ".join(f"{node}: {error}" for error, node in errors.items()))


def _refusal_lines(row: dict[str, Any]) -> list[str]:
    """Return the line about a node that can't say, or on which a quantisation does not fit."""
    if row["error"] is not None:
        return [f"{row['node']}: {row['error']}"]
    refused = [quant for quant in row["quants"] if quant["verdict"] not in _VERDICTS]
    return [f"{row['node']}: {quant['quant']} {quant['reason']}" for quant in refused[:1]]


_VERDICTS: Final = {"gpu": "on the GPU", "partial": "partly on the GPU", "cpu": "in RAM"}


def _fit_row(node: str, quant: dict[str, Any]) -> tuple[Any, ...]:
    verdict = _VERDICTS.get(quant["verdict"], "no")
    needs = f"{size_text(quant['low_bytes'])} to {size_text(quant['high_bytes'])}"
    largest = quant["largest_context"] or None
    return node, quant["quant"], size_text(quant["size_bytes"]), needs, verdict, largest


def _deploy(parsed: argparse.Namespace) -> int:
    on_vllm = parsed.engine == "vllm" and not parsed.model.startswith("vllm:")
    wanted = {
        "node": parsed.node,
        "model": f"vllm:{parsed.model}" if on_vllm else parsed.model,
        "context": parsed.context,
        "slots": parsed.slots,
        "idle_unload_s": parsed.idle_unload,
        **_options(parsed),
    }
    # which older relays don't know
    for name in ("mmproj", "lora"):
        if (value := getattr(parsed, name)) is not None:
            wanted[name] = value
    if parsed.install_engine:
        wanted["install_engine"] = True
    with AdminClient(find_target(parsed), HUB_TIMEOUT_S) as relay:
        view = relay.post("/deployments", wanted)
        if not parsed.no_wait:
            view = follow(relay, view)
    return _report(parsed, view)


def _context(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        view = relay.patch(_path(parsed), {"context": parsed.context, "slots": parsed.slots})
        if not parsed.no_wait:
            view = follow(relay, view)
    return _report(parsed, view)


def _edit(parsed: argparse.Namespace) -> int:
    changes = _options(parsed)
    for name in ("context", "slots"):
        if (value := getattr(parsed, name)) is not None:
            changes[name] = value
    if parsed.idle_unload is not None:
        changes["idle_unload_s"] = None if parsed.idle_unload == NONE else parsed.idle_unload
    if not changes:
        raise RequestError("nothing to change: see `wai model edit --help`")
    with AdminClient(find_target(parsed)) as relay:
        view = relay.patch(_path(parsed), changes)
        if not parsed.no_wait:
            view = follow(relay, view)
    return _report(parsed, view)


def _report(parsed: argparse.Namespace, view: dict[str, Any]) -> int:
    if parsed.json:
        print_json(view)
    if view["state"] == "failed":
        log = "".join(f"\n  {line}" for line in view["log_tail"])
        raise WaiError(f"{view['model']} on {view['node']} failed: {view['reason']}{log}")
    if view["swap_error"]:
        raise RequestError(f"it was not changed: {view['swap_error']}")
    if not parsed.json:
        served = view["context_served"] or view["context"]
        text = served_text(view)
        if served < (getattr(parsed, "context", None) or 0):
            text += "; the model was trained for no more"
        say(f"{view['model']} is {view['state']} on {view['node']}: {text}")
    return 0


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        found = relay.get("/deployments")["data"]
        nodes = relay.get("/nodes")["data"]
    if parsed.json:
        print_json(found)
        return 0
    away = [n["name"] for n in nodes if n["may_deploy"] and n["state"] not in CONNECTED]
    if away:
        names = plain(", ".join(away))
        say(f"models on nodes that are not connected are not listed: {names}", file=sys.stderr)
    print_table(
        ("NODE", "MODEL", "STATE", "SLOTS", "CONTEXT", "SIZE", ""),
        [
            (
                *(d["node"], d["model"], d["state"], d["slots"] or None),
                d["context_served"] or d["context"] or None,
                size_text(d["size_bytes"]),
                note(d),
            )
            for d in found
        ],
        empty="nothing is deployed on the nodes that are connected"
        if away
        else "no models are deployed; `wai model deploy REPO --node NAME` deploys one",
    )
    return 0


def _remove(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        left = relay.delete(_path(parsed))["data"]
    if parsed.json:
        print_json(left)
    else:
        stays = "; LM Studio keeps its files" if parsed.model.startswith("lmstudio:") else ""
        say(f"{parsed.model} is being removed from {parsed.node}{stays}")
    return 0


def _load(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        view = follow(relay, relay.post(_path(parsed, "/load"), {}))
    return _report(parsed, view)


def _unload(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        view = relay.post(_path(parsed, "/unload"), {})
    if parsed.json:
        print_json(view)
    else:
        say(f"{parsed.model} is unloaded; the next request loads it again")
    return 0


def _logs(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        lines = read_log(relay, parsed.node, parsed.model, parsed.lines)
    if parsed.json:
        print_json(lines)
    elif lines:
        print_lines(lines)
    else:
        say(f"the server of {parsed.model} has printed nothing yet", file=sys.stderr)
    return 0


def read_log(relay: AdminClient, node: str, model: str, lines: int) -> list[str]:
    """Return the last lines that the server of a deployed model printed. Raises `WaiError`."""
    query = urlencode({"model": model, "lines": lines})
    found: list[str] = relay.get(f"/deployments/{quote(node, safe='')}/logs?{query}")["data"]
    return found


def _path(parsed: argparse.Namespace, rest: str = "") -> str:
    query = urlencode({"model": parsed.model})
    return f"/deployments/{quote(parsed.node, safe='')}{rest}?{query}"
