"""What a node keeps on its disk: its key, and which relay it belongs to.

`node.key` is made at the first join (0600) and never leaves the node; `membership.json` says where
the relay is and how to know it. What the node shall serve is kept elsewhere (`managed.wanted`).
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError, StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_protocol.identity import NodeKey
from wai_transport.folder import DataFolder
from wai_transport.identity_file import load_or_make

KEY_FILE: Final = "node.key"
MEMBERSHIP_FILE: Final = "membership.json"


class Membership(msgspec.Struct, frozen=True):
    """The relay that this node belongs to.

    `relay_public`: its Ed25519 key. `pin`: SHA-256 of its certificate's SubjectPublicKeyInfo, None
    where the system's authorities vouch for it. `dial`: see `KnownRelay`. `name` and `node_id`:
    what the relay calls us. `allow_deploy`: False for a node that was joined with `--no-deploy`.
    `invite`: the SHA-256, in hex, of the secret that it joined by; "" where that was not written
    down.
    """

    url: str
    relay_public: bytes
    pin: bytes | None
    node_id: str
    name: str
    allow_deploy: bool = True
    invite: str = ""
    dial: str = ""


def load_key(folder: DataFolder) -> NodeKey:
    """The node's key, made if there is none yet. Raises `StoreError`."""
    return load_or_make(folder, KEY_FILE, NodeKey)


def load_membership(folder: DataFolder) -> Membership:
    """Where this node belongs. Raises `RequestError` if it has not joined, `StoreError`."""
    kept = folder.read(MEMBERSHIP_FILE)
    if kept is None:
        raise RequestError(
            f"the node in {folder.path} has not joined a relay yet: run `wai node join`"
            " with an invite from `wai invite create` on the relay"
        )
    try:
        fields = read_json(kept, dict[str, Any], MEMBERSHIP_FILE)
        return Membership(
            url=fields["url"],
            relay_public=bytes.fromhex(fields["relay_public"]),
            pin=bytes.fromhex(fields["pin"]) if fields["pin"] else None,
            node_id=fields["node_id"],
            name=fields["name"],
            allow_deploy=fields.get("allow_deploy", True),
            invite=fields.get("invite", ""),
            dial=fields.get("dial", ""),
        )
    except (ForeignJsonError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder.path / MEMBERSHIP_FILE} is damaged; join again with a new invite"
        ) from error


def joined_by(folder: DataFolder, invite: str) -> Membership | None:
    """Where this node belongs, if it joined by this invite (the hash of its secret)."""
    try:
        kept = load_membership(folder)
    except (RequestError, StoreError):
        return None  # not joined, or damaged: joining anew puts it right
    return kept if kept.invite == invite else None


def keep_membership(folder: DataFolder, membership: Membership) -> None:
    """Write down where this node belongs. Raises `StoreError`."""
    fields = {
        "url": membership.url,
        "relay_public": membership.relay_public.hex(),
        "pin": membership.pin.hex() if membership.pin is not None else None,
        "node_id": membership.node_id,
        "name": membership.name,
        "allow_deploy": membership.allow_deploy,
        "invite": membership.invite,
        "dial": membership.dial,
    }
    folder.write(MEMBERSHIP_FILE, json.dumps(fields, indent=1).encode() + b"\n")
