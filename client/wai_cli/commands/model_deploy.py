"""`wai model deploy`: have one node, or several, download and serve a model."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from wai_api.bounds import MAX_REPLICAS
from wai_cli.client.admin_client import HUB_TIMEOUT_S, AdminClient
from wai_cli.client.target import find_target
from wai_cli.options.values import between, named, names
from wai_cli.output.deployment import follow, served_text
from wai_cli.output.several import follow_all
from wai_cli.output.tables import plain, print_json, say
from wai_protocol.errors import RequestError, WaiError

from .model_options import options_given, policy_given

ALL: Final = "all"
"""What `--node` takes for all nodes."""


def configure_deploy(deploy: argparse.ArgumentParser) -> None:
    """Add what is deployed, and where."""
    deploy.add_argument(
        "model",
        metavar="REPO[:QUANT]",
        type=named,
        help="publisher/name[:QUANT]; or ./FILE.gguf: a file on the node, in a folder that its"
        " owner lists in its settings; or ollama:NAME[:TAG], lmstudio:publisher/name: on the server"
        " that runs there",
    )
    where = deploy.add_mutually_exclusive_group(required=False)
    where.add_argument(
        "--node", metavar="NAME", type=named, help="the node to serve it, or all for all of them"
    )
    where.add_argument("--nodes", metavar="A,B", type=names, help="the nodes to serve it")
    deploy.add_argument(
        "--replicas",
        metavar="N",
        type=between(1, MAX_REPLICAS),
        help="serve it on N nodes, on those that it fits best (of --nodes, or of all)",
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
        "--draft",
        metavar="REPO[:QUANT]",
        type=named,
        help="a small model of the same family that drafts for it, or ./FILE.gguf on the node, or"
        " none (default: the repository's own, if it has one)",
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


def deploy_model(parsed: argparse.Namespace) -> int:
    """Run `wai model deploy`."""
    on_vllm = parsed.engine == "vllm" and not parsed.model.startswith("vllm:")
    wanted = {
        "model": f"vllm:{parsed.model}" if on_vllm else parsed.model,
        "context": parsed.context,
        "slots": parsed.slots,
        **options_given(parsed),
        **{name: value for name, value in policy_given(parsed).items() if value is not None},
    }
    # which older relays don't know
    for name in ("mmproj", "lora", "draft"):
        if (value := getattr(parsed, name)) is not None:
            wanted[name] = value
    if parsed.install_engine:
        wanted["install_engine"] = True
    one = parsed.node if parsed.node != ALL else None
    if parsed.replicas is not None and one is not None:
        raise RequestError("replicas are for several nodes: give --nodes A,B, or no node")
    if one is None and not (parsed.nodes or parsed.replicas or parsed.node == ALL):
        raise RequestError("name the nodes: --node NAME, --node all, --nodes A,B or --replicas N")
    if one is None:
        return _deploy_several(parsed, wanted)
    with AdminClient(find_target(parsed), HUB_TIMEOUT_S) as relay:
        view = relay.post("/deployments", {"node": one, **wanted})
        if not parsed.no_wait:
            view = follow(relay, view)
    return report(parsed, view)


def _deploy_several(parsed: argparse.Namespace, wanted: dict[str, Any]) -> int:
    """Deploy on several nodes. Status 1 if it failed on any, or if there are too few replicas."""
    if parsed.nodes:
        wanted["nodes"] = parsed.nodes
    if parsed.replicas is not None:
        wanted["replicas"] = parsed.replicas
    # the nodes are asked how it fits before they are asked to deploy
    with AdminClient(find_target(parsed), 2 * HUB_TIMEOUT_S) as relay:
        rows: list[dict[str, Any]] = relay.post("/deployments/several", wanted)["data"]
        views = [row["deployment"] for row in rows if row["deployment"] is not None]
        if views and not parsed.no_wait:
            followed = {view["node"]: view for view in follow_all(relay, views)}
            for row in rows:
                row["deployment"] = followed.get(row["node"], row["deployment"])
    for row in rows:
        view = row["deployment"]
        if view is not None and view["state"] in ("failed", "absent"):
            row["outcome"] = "failed"
            row["reason"] = view["reason"] or "it is not deployed there any more"
    if parsed.json:
        print_json(rows)
    done = [row for row in rows if row["outcome"] == "deployed"]
    for row in rows:
        _say_outcome(row, quiet=parsed.json)
    too_few = parsed.replicas is not None and len(done) < parsed.replicas
    if too_few:
        say(f"{len(done)} of {parsed.replicas} replicas are deployed", file=sys.stderr)
    failed = any(row["outcome"] == "failed" for row in rows) and parsed.replicas is None
    return 1 if failed or too_few or not done else 0


def _say_outcome(row: dict[str, Any], *, quiet: bool) -> None:
    node, view = plain(row["node"]), row["deployment"]
    if row["outcome"] != "deployed":
        what = "failed" if row["outcome"] == "failed" else "left out"
        say(f"{node}: {what}: {row['reason']}", file=sys.stderr)
    elif not quiet:
        say(f"{node}: {view['model']} is {view['state']} ({row['reason']})")


def report(parsed: argparse.Namespace, view: dict[str, Any], *, asked_change: bool = True) -> int:
    """Print how a deployment is served now. Raises `WaiError` if it failed, or was not changed
    although that was asked."""
    if parsed.json:
        print_json(view)
    if view["state"] == "failed":
        log = "".join(f"\n  {line}" for line in view["log_tail"])
        raise WaiError(f"{view['model']} on {view['node']} failed: {view['reason']}{log}")
    if asked_change and view["swap_error"]:
        raise RequestError(f"it was not changed: {view['swap_error']}")
    if not parsed.json:
        served = view["context_served"] or view["context"]
        text = served_text(view)
        if served < (getattr(parsed, "context", None) or 0):
            text += "; the model was trained for no more"
        say(f"{view['model']} is {view['state']} on {view['node']}: {text}")
    return 0
