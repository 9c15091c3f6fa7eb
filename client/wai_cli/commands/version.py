"""`wai version`."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai version`."""
    parser.set_defaults(run=print_version)


def print_version(parsed: argparse.Namespace) -> int:
    """Print `wai X.Y.Z`."""
    from wai_transport.version import VERSION

    print("wai", VERSION)
    return 0
