"""`wai node engine list|install|use|remove`: the llama.cpp that a node runs models on."""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

from wai_cli.options.paths import add_data_option, node_data
from wai_cli.options.values import named

_NOTE: Final = """\
Run this on the node's machine. A running node moves its models to the engine that is used, without
dropping a request, and goes back if it does not come up. `server` in the node's settings file goes
before the engine that is used.

examples:
  wai node engine install                    the build of llama.cpp that fits this machine
  wai node engine install --backend vulkan
  wai node engine install --archive llama-b11429-bin-ubuntu-vulkan-x64.tar.gz --sha256 632c4e98…
  wai node engine list
  wai node engine use b11429-vulkan"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai node engine`."""
    parser.epilog = _NOTE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the engines on this machine")
    listing.set_defaults(run=partial(_run, "list_engines"))
    install = actions.add_parser("install", help="get a build of llama.cpp, and use it")
    install.set_defaults(run=partial(_run, "install_engine"))
    _configure_install(install)
    use = actions.add_parser("use", help="have the node use another engine")
    use.set_defaults(run=partial(_run, "use_engine"))
    use.add_argument(
        "name", metavar="NAME", type=named, help="as `list` shows it; auto: the first that is found"
    )
    remove = actions.add_parser("remove", help="delete an engine that was installed")
    remove.set_defaults(run=partial(_run, "remove_engine"))
    remove.add_argument("name", metavar="NAME", type=named, help="as `list` shows it")
    for action in (listing, install, use, remove):
        add_data_option(action, node_data(), "node")
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _configure_install(parser: argparse.ArgumentParser) -> None:
    from wai_node.engines.backends import BACKENDS

    parser.add_argument(
        "version", metavar="VERSION", nargs="?", help="such as b11429 (default: the newest known)"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what it computes with (default: what this machine's drivers can)",
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="a file or an https URL that lists builds with their SHA-256, instead of the shipped"
        " list",
    )
    parser.add_argument(
        "--archive", metavar="FILE", type=Path, help="install this .tar.gz, with --sha256"
    )
    parser.add_argument("--sha256", metavar="HASH", help="what the archive must have")
    parser.add_argument("--name", metavar="NAME", help="what to call the engine of --archive")
    parser.add_argument("--no-use", action="store_true", help="install it, and use it later")


def _run(action: str, parsed: argparse.Namespace) -> int:
    """Load what does the work, which `wai node run` need not."""
    status: int = getattr(import_module("wai_cli.commands.engines_here"), action)(parsed)
    return status
