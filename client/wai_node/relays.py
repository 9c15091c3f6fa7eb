"""The relays of the node's fleet, on its disk.

A node joins by one relay's invite. A relay that shares its store with others vouches for their keys
over the authenticated session, and the node keeps a session to each of them. The list lies on the
disk, so that a node that starts while the relay that it joined is gone finds the others.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from wai_protocol.errors import RequestError, StoreError
from wai_protocol.relay_list import RelayList
from wai_transport.folder import DataFolder

RELAYS_FILE: Final = "relays.json"

_log = logging.getLogger("wai.node")


def load_relays(folder: DataFolder) -> RelayList:
    """Return the list that was kept last; an empty one if there is none, or it is damaged."""
    try:
        kept = folder.read(RELAYS_FILE)
        return RelayList() if kept is None else RelayList.from_map(json.loads(kept))
    except (StoreError, RequestError, ValueError) as error:
        _log.warning("%s is not used, a relay tells it anew: %s", folder.path / RELAYS_FILE, error)
        return RelayList()


def keep_relays(folder: DataFolder, relays: RelayList) -> None:
    """Write the list down. A full disk is logged, and no reason to serve no more."""
    try:
        folder.write(RELAYS_FILE, json.dumps(relays.to_map(), indent=1).encode() + b"\n")
    except StoreError as error:
        _log.warning("%s", error)


def forget_relays(folder: DataFolder) -> None:
    """Forget the fleet that the node belonged to before."""
    folder.remove(RELAYS_FILE)
