"""`wai up`: run a relay, and this machine as its node, with an available model, to try wai out.

This module parses its options. `trial`, which is imported when the command runs, does the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from wai_cli.options.paths import data_home
from wai_cli.options.values import first_line
from wai_protocol.errors import RequestError

_EXAMPLES: Final = """\
examples:
  wai up
  wai up --listen 127.0.0.1:9443 --data ./try
  wai up --upstream http://127.0.0.1:8080 --upstream-key-file llama.key"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai up`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=data_home(),
        help=f"where relay and node keep their data (default: {data_home()})".replace("%", "%%"),
    )
    parser.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8443")
    parser.add_argument(
        "--upstream",
        metavar="URL",
        help="serve this inference server (default: those on the usual ports, else a small model)",
    )
    parser.add_argument(
        *("--upstream-key-file",),
        metavar="FILE",
        dest="upstream_key",
        type=first_line,
        help="a file whose first line is the key that this server asks for",
    )
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from .trial import Server, run

    if parsed.upstream_key and parsed.upstream is None:
        raise RequestError("--upstream-key-file goes with --upstream URL")
    given = None if parsed.upstream is None else Server(parsed.upstream, parsed.upstream_key or "")
    if given is not None:
        from wai_node.config import UpstreamConfig

        UpstreamConfig(given.url)  # raises for what the node would refuse later
    run(parsed.data, parsed.listen, given)
    return 0
