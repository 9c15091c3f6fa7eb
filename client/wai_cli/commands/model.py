"""`wai model`: the models on nodes: search, fit, deploy, change, retry, remove, read logs."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final
from urllib.parse import quote, urlencode

from wai_api.bounds import (
    CACHE_TYPES,
    MAX_CONTEXT_TOKENS,
    MAX_FOUND,
    MAX_GPU_LAYERS,
    MAX_SLOTS,
)
from wai_cli.client.admin_client import HUB_TIMEOUT_S, AdminClient
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.values import (
    AUTO,
    auto_or_whole,
    between,
    count,
    gpu_numbers,
    named,
)
from wai_cli.output.deployment import CONNECTED, follow, note, shown_state
from wai_cli.output.progress import size_text
from wai_cli.output.tables import plain, print_json, print_lines, print_table, say
from wai_protocol.errors import NodeUnavailable, RequestError, WaiError

from .model_deploy import configure_deploy, deploy_model, report
from .model_options import add_options, add_policy, options_given, policy_given

DEFAULT_CONTEXT, DEFAULT_SLOTS = 8192, 2  # the node's own

_EXAMPLES: Final = """\
examples:
  wai model search qwen3 4b
  wai model fit unsloth/Qwen3-4B-GGUF --node box
  wai model deploy unsloth/Qwen3-4B-GGUF:Q4_K_M --node box --context 16384 --slots 2
  wai model deploy unsloth/Qwen3-4B-GGUF --replicas 2 --load on-demand --ttl 10m
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
    fit.add_argument(
        "--cpu-moe",
        metavar="N",
        type=auto_or_whole(0, MAX_GPU_LAYERS),
        help="with the experts of so many layers in RAM; auto: of as few as fit",
    )
    fit.add_argument(
        "--gpus", metavar="0,1", type=gpu_numbers, help="on these GPUs, by their numbers, or auto"
    )
    deploy = _action(actions, "deploy", "have nodes download and serve a model", deploy_model)
    configure_deploy(deploy)
    _add_load(deploy)
    add_options(deploy)
    add_policy(deploy)
    _add_wait(deploy)
    listing = _action(actions, "list", "list the deployed models", _list)
    context = _action(actions, "context", "change a model's context while it serves", _context)
    edit = _action(actions, "edit", "change how a model is served while it serves", _edit)
    retry = _action(actions, "retry", "try a deployment again that has failed", _retry)
    _add_wait(retry)
    remove = _action(actions, "remove", "stop serving a model and delete its files", _remove)
    logs = _action(actions, "logs", "read what a model's server printed", _logs)
    load = _action(actions, "load", "load a model now", _load)
    unload = _action(actions, "unload", "free a model's memory; a request loads it again", _unload)
    named_model = (context, edit, retry, remove, logs, load, unload)
    for action in named_model:
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
    for action in (search, fit, deploy, listing, *named_model):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _configure_edit(edit: argparse.ArgumentParser) -> None:
    _add_load(edit, "per slot", "requests at once")
    add_options(edit)
    add_policy(edit)
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
        "cpu_moe": None if parsed.cpu_moe == AUTO else parsed.cpu_moe,
        "gpus": ",".join(map(str, parsed.gpus)) if isinstance(parsed.gpus, list) else None,
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


def _context(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        view = relay.patch(_path(parsed), {"context": parsed.context, "slots": parsed.slots})
        if not parsed.no_wait:
            view = follow(relay, view)
    return report(parsed, view)


def _edit(parsed: argparse.Namespace) -> int:
    changes = options_given(parsed) | policy_given(parsed)
    for name in ("context", "slots"):
        if (value := getattr(parsed, name)) is not None:
            changes[name] = value
    if not changes:
        raise RequestError("nothing to change: see `wai model edit --help`")
    with AdminClient(find_target(parsed)) as relay:
        view = relay.patch(_path(parsed), changes)
        if not parsed.no_wait:
            view = follow(relay, view)
    return report(parsed, view)


def _retry(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed), HUB_TIMEOUT_S) as relay:
        view = relay.post(_path(parsed, "/retry"), {})
        if not parsed.no_wait:
            view = follow(relay, view)
    return report(parsed, view)


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
                *(d["node"], d["model"], shown_state(d), d["slots"] or None),
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
    return report(parsed, view, asked_change=False)


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
