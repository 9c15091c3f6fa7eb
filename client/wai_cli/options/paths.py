"""The default data folders, by the platform's convention; `--data` overrides them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def home() -> Path:
    """Return this user's home folder; the root folder, as a shell does, for a user that is not
    known to the system and has no HOME (a container's)."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def data_home() -> Path:
    """Return the folder that contains this user's folders for a relay and a node."""
    if sys.platform == "darwin":
        return home() / "Library" / "Application Support" / "wai"
    given = os.environ.get("XDG_DATA_HOME", "")
    base = Path(given) if given.startswith("/") else home() / ".local" / "share"
    return base / "wai"


def relay_data() -> Path:
    """Return the relay's data folder: $WAI_RELAY_DATA, the service's for root, or this user's."""
    return _from_environment("WAI_RELAY_DATA") or _of_service("relay") or data_home() / "relay"


def node_data() -> Path:
    """Return the node's data folder: $WAI_NODE_DATA, the service's for root, or this user's."""
    return _from_environment("WAI_NODE_DATA") or _of_service("node") or data_home() / "node"


def add_data_option(
    parser: argparse.ArgumentParser, default: Path, whose: str, *, above: bool = False
) -> None:
    """`--data DIR`. With `above` the command before this one has it too, and its value counts where
    this one is not given."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=argparse.SUPPRESS if above else default,
        help=f"the {whose}'s data folder (default: {default})".replace("%", "%%"),
    )


def _of_service(role: str) -> Path | None:
    """Return the data folder of the service that install.sh made, if this user may read it."""
    folder = Path(f"/var/lib/wai-{role}")
    return folder if os.geteuid() == 0 and folder.is_dir() else None


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    if not value:
        return None
    try:
        return Path(value).expanduser()
    except RuntimeError:
        return Path(value)  # ~NAME of an unknown user: whoever opens it says that it is not there
