"""`wai settings`: a settings file of a relay or a node, with every key and what it means."""

from __future__ import annotations

import argparse
from typing import Any, Final

PROGRAMS: Final = {"relay": ("wai relay", "WAI_RELAY_"), "node": ("wai node run", "WAI_NODE_")}
"""Which command has these settings, and how its variables begin."""
_EXAMPLES: Final = """\
examples:
  wai settings relay > relay.toml    every key with its default; all are commented out
  wai relay --config relay.toml
  wai settings node | less"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai settings`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("program", metavar="PROGRAM", choices=tuple(PROGRAMS), help="relay or node")
    parser.set_defaults(run=_print)


def settings_of(program: str) -> type[Any]:
    """Return the definition of a program's settings."""
    if program == "relay":
        from wai_relay.config import RelayConfig

        return RelayConfig
    from wai_node.config import NodeConfig

    return NodeConfig


def _print(parsed: argparse.Namespace) -> int:
    from wai_cli.options.reference import example

    print(example(settings_of(parsed.program), *PROGRAMS[parsed.program]), end="")
    return 0
