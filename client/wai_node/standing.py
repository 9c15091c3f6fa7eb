"""How a running node stands, written down for whoever looks at its machine (`wai doctor`).

A file in the data folder, written anew when something in it changes; nothing reads it but people's
commands. It outlives its node: whether one runs is what the folder's lock says.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import asdict

from wai_protocol.errors import StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.folder import DataFolder

STANDING_FILE: Final = "node.json"

_log = logging.getLogger("wai.node")


class Standing(msgspec.Struct, frozen=True):
    """`connected`: to the relay. `problem`: why not, "" while nothing was found out. `models`: what
    it serves, by name. `parts_down`: the parts of the node that failed, with the reasons.
    `engine_problem`: what is wrong with the engine of its own models. `upstreams_down`: the servers
    that it was given or has found and can't use, with the reasons."""

    connected: bool = False
    problem: str = ""
    models: tuple[str, ...] = ()
    parts_down: dict[str, str] = msgspec.field(default_factory=dict)
    engine_problem: str = ""
    upstreams_down: dict[str, str] = msgspec.field(default_factory=dict)


def keep_standing(folder: DataFolder, standing: Standing) -> None:
    """Write it down. A full disk is logged, and no reason to serve no more."""
    try:
        folder.write(STANDING_FILE, json.dumps(asdict(standing)).encode() + b"\n")
    except StoreError as error:
        _log.warning("%s", error)


def read_standing(data: Path) -> Standing | None:
    """What the node with this folder wrote last; None if there is nothing to be read."""
    try:
        fields = read_json((data / STANDING_FILE).read_bytes(), dict[str, Any], STANDING_FILE)
        return Standing(
            bool(fields["connected"]),
            str(fields["problem"]),
            tuple(map(str, fields["models"])),
            {name: str(why) for name, why in fields.get("parts_down", {}).items()},
            str(fields.get("engine_problem", "")),
            {name: str(why) for name, why in fields.get("upstreams_down", {}).items()},
        )
    except (OSError, ForeignJsonError, KeyError, TypeError, AttributeError):
        return None
