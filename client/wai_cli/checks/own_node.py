"""Check for `wai doctor` whether this machine's node runs and serves, from its `node.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from wai_node.membership import MEMBERSHIP_FILE
from wai_node.standing import read_standing
from wai_protocol.errors import StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.folder import MAX_FILE_BYTES, FolderLock
from wai_transport.owner import as_owner, read_own

from .finding import Finding

_CHECK: Final = "here"
_START: Final = (
    "start it: `systemctl start wai-node` (`systemctl --user …` without root) if it is a service;"
    " else `wai node run`"
)
_SERVE: Final = "start an inference server here, or give the node --upstream URL"
_SERVERS: Final = (
    "see that this server runs, and that the address and the key that the node was given for it"
    " (--upstream, --upstream-key-file) are right"
)
_JOIN: Final = "`wai invite create` on the relay, and `wai node join` here"
_ENGINE: Final = "`wai node engine list` on this machine shows what there is"
_LOG: Final = "see its log: `journalctl -u wai-node` (`--user` without root)"


def own_node(data: Path) -> Finding | None:
    """Return the finding about the node with this data folder; None if no node has joined."""
    with as_owner(data):
        return _look_into(data)


def _look_into(data: Path) -> Finding | None:
    membership = data / MEMBERSHIP_FILE
    try:
        written = read_own(membership, MAX_FILE_BYTES)
        if written is None:
            return None
        name = read_json(written, dict[str, Any], MEMBERSHIP_FILE)["name"]
        process = FolderLock.holder(data, "node")
    except (ForeignJsonError, ValueError, KeyError):
        return Finding(_CHECK, ok=False, text=f"{membership} is damaged", advice=_JOIN)
    except (StoreError, OSError) as error:
        advice = "run this as the node's user, or as root"
        return Finding(_CHECK, ok=False, text=f"{data} can't be read: {error}", advice=advice)
    if process is None:
        text = f"the node {name} does not run (data folder {data})"
        return Finding(_CHECK, ok=False, text=text, advice=_START)
    standing = read_standing(data)
    runs = f"the node {name} runs (process {process})"
    if standing is None:
        return Finding(_CHECK, ok=True, text=f"{runs}; its state is not known")
    if not standing.connected:
        why = standing.problem or "it dials"
        return Finding(_CHECK, ok=False, text=f"{runs}, without a connection: {why}", advice=_LOG)
    if standing.parts_down:
        down = "; ".join(f"{name} ({why})" for name, why in sorted(standing.parts_down.items()))
        text = f"{runs}, but parts of it fail and are started again: {down}"
        return Finding(_CHECK, ok=False, text=text, advice=_LOG)
    if standing.engine_problem:
        text = f"{runs}, but {standing.engine_problem}"
        return Finding(_CHECK, ok=False, text=text, advice=_ENGINE)
    if standing.upstreams_down:
        down = "; ".join(f"{name}: {why}" for name, why in sorted(standing.upstreams_down.items()))
        text = f"{runs} and is connected, but can't use every server: {down}"
        return Finding(_CHECK, ok=False, text=text, advice=_SERVERS)
    if not standing.models:
        text = f"{runs} and is connected, but serves no model"
        return Finding(_CHECK, ok=False, text=text, advice=_SERVE)
    served = ", ".join(standing.models)
    return Finding(_CHECK, ok=True, text=f"{runs}, is connected, and serves: {served}")
