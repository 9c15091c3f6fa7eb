"""The options that say where a relay's database is, for commands beside `wai relay`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_database_options(parser: argparse.ArgumentParser) -> None:
    """`--database`, `--database-password-file` and `--config`."""
    parser.add_argument(
        "--database",
        metavar="URL",
        default=argparse.SUPPRESS,
        help="the relay's PostgreSQL: postgresql://USER@HOST/DATABASE (default: a file in --data)",
    )
    parser.add_argument(
        "--database-password-file",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help="file with the password for --database",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help="the relay's settings, which may name the database",
    )


def database_of(parsed: argparse.Namespace) -> Any:
    """Return the `PostgresAddress` that options, environment or settings name; None: a file.

    Raises `RequestError`.
    """
    from wai_relay.config import RelayConfig

    from .settings import load

    names = ("data", "database", "database_password_file")
    config = load(
        RelayConfig,
        file=getattr(parsed, "config", None),
        environment=os.environ,
        prefix="WAI_RELAY_",
        flags={name: getattr(parsed, name, None) for name in names},
    )
    return config.postgres
