"""`wai node join|run|uninstall` on the GPU box; the relay's nodes: `wai node list` and others."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from wai_api.bounds import MAX_UPSTREAM_SLOTS
from wai_cli.client.target import add_target_options
from wai_cli.options.paths import add_data_option, node_data
from wai_cli.options.proxy import proxy_settings
from wai_cli.options.values import count, first_line, named, whole_or_none
from wai_cli.output.tables import print_json, say
from wai_transport.heap import hold_heap

from . import node_engine, node_upstream, uninstall

MAX_INVITE_CHARS: Final = 4096  # a real one has about 220
INVITE_VARIABLE: Final = "WAI_INVITE"
_EXAMPLES = """\
examples:
  wai node join --name box               on the GPU box, once; asks for the invite
  wai node run                           there: serves what it finds on the usual ports
  wai node run --upstream http://127.0.0.1:8080
  wai node list                          on the relay's host"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai node`."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _configure_join(actions.add_parser("join", help="join a relay, by an invite"))
    _configure_run(actions.add_parser("run", help="connect to the relay and serve"))
    node_upstream.configure(
        actions.add_parser("upstream", help="say which found inference servers are used here")
    )
    node_engine.configure(
        actions.add_parser("engine", help="get, choose and remove the llama.cpp that runs models")
    )
    uninstall.configure(actions.add_parser("uninstall", help="undo what install.sh did here"))
    listing = actions.add_parser("list", help="list the relay's nodes")
    listing.set_defaults(run=partial(_on_fleet, "list_nodes"))
    status = actions.add_parser("status", help="look at one node and what it serves")
    status.set_defaults(run=partial(_on_fleet, "status"))
    drain = actions.add_parser("drain", help="give a node no new requests")
    drain.set_defaults(run=partial(_on_fleet, "drain"))
    undrain = actions.add_parser("undrain", help="give a drained node requests again")
    undrain.set_defaults(run=partial(_on_fleet, "undrain"))
    slots = actions.add_parser("slots", help="say how many requests a server works on at once")
    slots.set_defaults(run=partial(_on_fleet, "slots"))
    rename = actions.add_parser("rename", help="give a node another name")
    rename.set_defaults(run=partial(_on_fleet, "rename"))
    remove = actions.add_parser("remove", help="disconnect a node and let it in no more")
    remove.set_defaults(run=partial(_on_fleet, "remove"))
    logs = actions.add_parser("logs", help="read what the servers of its deployed models printed")
    logs.add_argument("--model", metavar="MODEL", help="of this one only")
    logs.add_argument(
        "--lines", metavar="N", type=count, default=100, help="at most so many of each"
    )
    logs.set_defaults(run=partial(_on_fleet, "logs"))
    for action in (status, drain, undrain, slots, rename, remove, logs):
        action.add_argument("name", metavar="NAME", type=named, help="the node's name or id")
    slots.add_argument(
        "upstream", metavar="SERVER", type=named, help="as `wai node status NAME` shows it"
    )
    slots.add_argument(
        "slots",
        metavar="N",
        type=whole_or_none(1, MAX_UPSTREAM_SLOTS),
        help="for a server that does not tell; none: the relay learns it",
    )
    rename.add_argument("new", metavar="NEW", type=named, help="what it is called from now on")
    for action in (listing, status, drain, undrain, slots, rename, remove, logs):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _configure_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "invite",
        metavar="INVITE",
        nargs="?",
        help="from `wai invite create` on the relay; - reads stdin. Others see an argument in the "
        "process list: without one, WAI_INVITE is read, or the invite is asked for",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="what this node is called at the relay (default: the invite's name, or the host's)",
    )
    parser.add_argument(
        "--relay", metavar="HOST:PORT", help="dial this address instead, with the same pin"
    )
    parser.add_argument(
        "--no-deploy", action="store_true", help="take no orders from the relay to run models"
    )
    add_data_option(parser, node_data(), "node")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(run=partial(_join, parser))


class _UpstreamKey(argparse.Action):
    """Keeps each key by the number of the `--upstream` that it came after."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        upstreams = namespace.upstream or []
        keys = getattr(namespace, self.dest) or {}
        setattr(namespace, self.dest, keys | {len(upstreams) - 1: values})


def _configure_run(parser: argparse.ArgumentParser) -> None:
    add_data_option(parser, node_data(), "node")
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings, in TOML")
    parser.add_argument(
        "--upstream",
        metavar="URL",
        action="append",
        help="serve this inference server, and none that is not named; may be given several times",
    )
    parser.add_argument(
        "--upstream-key",
        metavar="KEY",
        action=_UpstreamKey,
        help="the key that the --upstream before it asks for (others see it in the process list: "
        "better --upstream-key-file, or --config)",
    )
    parser.add_argument(
        "--upstream-key-file",
        metavar="FILE",
        dest="upstream_key",
        action=_UpstreamKey,
        type=first_line,
        help="a file with that key in its first line",
    )
    parser.add_argument(
        "--relay", metavar="HOST:PORT", help="dial this address instead, with the same pin"
    )
    parser.add_argument("--tunnels", metavar="N", type=int, help="connections to keep (default 1)")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    parser.add_argument("--log-format", metavar="FORMAT", help="text (default) or json")
    parser.set_defaults(run=_run)


def _join(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> int:
    from wai_node.config import JoinConfig
    from wai_node.main import join

    invite = _invite(parser, parsed.invite)
    membership = join(
        JoinConfig(
            data=parsed.data,
            invite=invite,
            name=parsed.name,
            relay=parsed.relay,
            allow_deploy=not parsed.no_deploy,
            **proxy_settings(),
        )
    )
    if parsed.json:
        print_json({"id": membership.node_id, "name": membership.name, "relay": membership.url})
    else:
        say(f"this machine is {membership.name} at {membership.url}; go on with `wai node run`")
    return 0


def _invite(parser: argparse.ArgumentParser, argument: str | None) -> str:
    """The invite, from where no other user of the machine can read it if that was left to us."""
    if argument is not None and argument != "-":
        print(
            "wai: other users of this machine can read an invite that is an argument; better run"
            " `wai node join`, which asks for it, or `wai node join -`, which reads stdin",
            file=sys.stderr,
        )
        return argument
    if argument is None and (found := os.environ.get(INVITE_VARIABLE)):
        return found
    if argument is None and sys.stdin.isatty():
        from getpass import getpass

        return getpass("Invite (from `wai invite create` on the relay; it is not shown): ")
    if argument is None:
        parser.error("an invite is needed: in WAI_INVITE, or on the stdin of `wai node join -`")
    return sys.stdin.readline(MAX_INVITE_CHARS)


def _run(parsed: argparse.Namespace) -> int:
    hold_heap()  # until the node works
    from wai_cli.options.settings import load
    from wai_cli.output.logs import log_to_stderr
    from wai_node.config import NodeConfig
    from wai_node.main import run
    from wai_transport.private_process import keep_memory_private

    upstreams, keys = None, parsed.upstream_key or {}
    if -1 in keys:
        from wai_protocol.errors import RequestError

        raise RequestError("--upstream-key goes with --upstream URL, after it")
    if parsed.upstream is not None:
        upstreams = [{"url": u, "key": keys.get(i)} for i, u in enumerate(parsed.upstream)]
    config = load(
        NodeConfig,
        file=parsed.config,
        environment=os.environ,
        prefix="WAI_NODE_",
        flags={
            "data": parsed.data,
            "relay": parsed.relay,
            "upstreams": upstreams,
            "tunnels": parsed.tunnels,
            "log_level": parsed.log_level,
            "log_format": parsed.log_format,
            "hf_endpoint": os.environ.get("HF_ENDPOINT"),
            "hf_token": os.environ.get("HF_TOKEN"),
            "engine_mirror": os.environ.get("WAI_ENGINE_MIRROR"),
            **proxy_settings("WAI_NODE_"),
        },
    )
    log_to_stderr(config.log_level, config.log_format)
    keep_memory_private()
    run(config)
    return 0


def _on_fleet(action: str, parsed: argparse.Namespace) -> int:
    """Run a command on the relay's nodes; `wai node run` on a GPU box need not load its module."""
    status: int = getattr(import_module("wai_cli.commands.fleet"), action)(parsed)
    return status
