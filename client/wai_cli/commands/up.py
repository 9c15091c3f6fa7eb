"""`wai up`: run a relay, and this machine as its node, with an available model, to try wai out.

This module parses its options. `trial`, which is imported when the command runs, does the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from wai_cli.options.paths import data_home

_EXAMPLES: Final = """\
examples:
  wai up
  wai up --listen 127.0.0.1:9443 --data ./try"""


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
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from .trial import run

    run(parsed.data, parsed.listen)
    return 0
