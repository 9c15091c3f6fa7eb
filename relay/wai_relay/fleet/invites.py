"""Invites: letting a node in, once each.

Of an invite's secret only the SHA-256 is kept. Its string's format is `wai_protocol.invite`'s; what
a node is once it is in, `registry`'s.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec
from msgspec.structs import replace

from wai_api.bounds import MAX_TTL_S
from wai_protocol.errors import AuthError, Fault, RequestError
from wai_protocol.identity import node_id
from wai_protocol.invite import Invite, secret_sha256
from wai_protocol.known_relay import KnownRelay
from wai_relay.storage import ConflictError, Row, Store, Write
from wai_transport.origin import Origin

from .registry import NodeRecord, NodeRegistry, check_name, name_taken, node_from_row

DEFAULT_TTL_S: Final = 24 * 3600.0
SECRET_BYTES: Final = 16
MAX_HOST_CHARS: Final = 56  # of a host's name in a node's, which has 63 with a number behind it
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")


class InviteAddress(msgspec.Struct, frozen=True):
    """What an invite says of this relay; see `wai_protocol.invite.Invite` for the fields."""

    url: str
    relay: bytes
    pin: bytes | None
    dial: str = ""


def node_address(
    address: InviteAddress, public_url: str, node_url: str | None, hosts: Collection[str]
) -> InviteAddress:
    """How nodes reach one of several relays, at `node_url`.

    Where nodes know it by an authority's certificate, which is for `hosts` and not for that name,
    they are told a name that it is for, and to connect to `node_url` for it.
    """
    if node_url is None:
        return replace(address, url=public_url)
    own, _ = Origin.parse(node_url)
    if address.pin is not None or own.scheme != "https" or not hosts or _names(hosts, own.host):
        return replace(address, url=node_url)
    public, _ = Origin.parse(public_url)
    host = f"[{own.host}]" if ":" in own.host else own.host
    name = public.host if _names(hosts, public.host) else min(hosts)
    return replace(address, url=f"https://{name}", dial=f"{host}:{own.port}")


def _names(hosts: Collection[str], host: str) -> bool:
    """Whether a certificate for `hosts` is good for `host` (RFC 9525 section 6.3)."""
    return host in hosts or f"*.{host.partition('.')[2]}" in hosts


class InviteRecord(msgspec.Struct, frozen=True):
    """An invite as the store knows it. Times are seconds since 1970; `used_by` is a node's id."""

    id: str
    name: str | None
    may_deploy: bool
    created_at: float
    expires_at: float
    used_at: float | None = None
    used_by: str | None = None
    revoked_at: float | None = None

    def state(self, now: float) -> str:
        """ "open", "used", "revoked" or "expired"."""
        if self.used_at is not None:
            return "used"
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if now >= self.expires_at else "open"


class Invites:
    """Makes, lists, revokes and redeems invites. Belongs to one event loop."""

    def __init__(
        self, store: Store, registry: NodeRegistry, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock

    async def create(
        self,
        address: InviteAddress,
        *,
        name: str | None = None,
        may_deploy: bool = True,
        ttl_s: float = DEFAULT_TTL_S,
        also: tuple[KnownRelay, ...] = (),
    ) -> tuple[InviteRecord, str]:
        """A new invite and its string, which is shown this once.

        `name` is what the node will be called unless it chooses itself. `also`: the relays that
        redeem it beside the one at `address`. Raises `RequestError`.
        """
        if not 0 < ttl_s <= MAX_TTL_S:
            raise RequestError(f"an invite is good for at most {MAX_TTL_S:.0f} seconds, and over 0")
        if name is not None:
            check_name(name)
        secret = secrets.token_bytes(SECRET_BYTES)
        now = self._clock()
        record = InviteRecord(
            id="inv_" + secrets.token_hex(8),
            name=name,
            may_deploy=may_deploy,
            created_at=now,
            expires_at=now + ttl_s,
        )
        text = Invite(
            *(address.url, address.relay, secret, address.pin, address.dial, also)
        ).encode()
        options = json.dumps({"may_deploy": may_deploy})
        await self._store.write(
            Write(
                "INSERT INTO invites (id, secret_sha256, name, options, created_at, expires_at)"
                " VALUES ($1, $2, $3, $4, $5, $6)",
                (record.id, secret_sha256(secret), name, options, now, record.expires_at),
            )
        )
        return record, text

    async def list(self) -> list[InviteRecord]:
        """All invites, oldest first."""
        rows = await self._store.read("SELECT * FROM invites ORDER BY created_at, id")
        return [_invite_from_row(row) for row in rows]

    async def revoke(self, invite_id: str) -> InviteRecord:
        """Make an unused invite worthless. Raises `RequestError` if it is unknown or was used."""
        try:
            await self._store.write(
                Write(
                    "UPDATE invites SET revoked_at = coalesce(revoked_at, $1)"
                    " WHERE id = $2 AND used_at IS NULL",
                    (self._clock(), invite_id),
                    rows=1,
                )
            )
        except ConflictError:
            if await self._store.read("SELECT id FROM invites WHERE id = $1", invite_id):
                raise RequestError(
                    f"the invite {invite_id} was used already: remove the node that used it instead"
                ) from None
            raise RequestError(f"there is no invite {invite_id!r}", Fault.NOT_FOUND) from None
        rows = await self._store.read("SELECT * FROM invites WHERE id = $1", invite_id)
        return _invite_from_row(rows[0])

    async def redeem(
        self, secret: bytes, public_key: bytes, name: str | None, host: str = ""
    ) -> NodeRecord:
        """Let the node with `public_key` in, at the price of the invite with `secret`.

        Exactly one node gets in by an invite, however many try at once. The same node may ask
        again (its connection may have died before it heard the answer) and gets the same answer.
        Its name is `name`, or else the invite's, or else one made from the name of its `host`.
        Raises `AuthError` (INVITE_INVALID) or `RequestError` (NAME_TAKEN, a bad name); then the
        invite is as good as before.
        """
        digest = secret_sha256(secret)
        rows = await self._store.read(_BY_DIGEST, digest)
        if not rows:
            raise _refused("this relay does not know it")
        invite = _invite_from_row(rows[0])
        joining = node_id(public_key)
        if (known := await self._joined_by(invite, joining)) is not None:
            return known
        if invite.state(self._clock()) != "open":
            raise _refused(_WHY[invite.state(self._clock())])
        node = NodeRecord(
            id=joining,
            name=name or invite.name or self._name_after(host) or joining.replace("_", "-"),
            public_key=public_key,
            created_at=self._clock(),
            may_deploy=invite.may_deploy,
        )
        check_name(node.name)
        try:
            return await self._enrol(digest, node)
        except RequestError as error:
            if error.fault is not Fault.NAME_TAKEN or name or invite.name:
                raise
        await self._registry.follow()  # another one took the host's name, maybe at another relay
        return await self.redeem(secret, public_key, name, host)

    def _name_after(self, host: str) -> str:
        """A name that no other node has, made from a host's; "" where nothing of it can be used."""
        base = _NOT_IN_NAMES.sub("-", host.partition(".")[0]).strip("-._")[:MAX_HOST_CHARS]
        if not base:
            return ""
        taken = {node.name for node in self._registry.nodes()}
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain([base], numbered) if name not in taken)

    async def _enrol(self, digest: bytes, node: NodeRecord) -> NodeRecord:
        """Spend the invite and write the node, both or neither."""
        now = self._clock()
        try:
            await self._store.write(
                Write(
                    "UPDATE invites SET used_at = $1, used_by = $2 WHERE secret_sha256 = $3"
                    " AND used_at IS NULL AND revoked_at IS NULL AND expires_at > $1",
                    (now, node.id, digest),
                    rows=1,
                ),
                # A node that was here before comes in again under its old id.
                Write(
                    "INSERT INTO nodes (id, name, public_key, tags, options, created_at)"
                    " VALUES ($1, $2, $3, '[]', $4, $5) ON CONFLICT (id) DO UPDATE SET"
                    " name = excluded.name, options = excluded.options, removed_at = NULL",
                    (node.id, node.name, node.public_key, node.options, node.created_at),
                ),
            )
        except ConflictError:
            invite = _invite_from_row((await self._store.read(_BY_DIGEST, digest))[0])
            if (known := await self._joined_by(invite, node.id)) is not None:
                return known  # it asked twice at once
            state = invite.state(self._clock())
            raise (name_taken(node.name) if state == "open" else _refused(_WHY[state])) from None
        rows = await self._store.read("SELECT * FROM nodes WHERE id = $1", node.id)
        enrolled = node_from_row(rows[0])
        self._registry.keep(enrolled)
        return enrolled

    async def _joined_by(self, invite: InviteRecord, joining: str) -> NodeRecord | None:
        """The node that is joining, if it came in by this invite, maybe at another relay."""
        if invite.used_by != joining:
            return None
        if self._registry.get(joining) is None:
            await self._registry.follow(joining)
        return self._registry.get(joining)


_BY_DIGEST: Final = "SELECT * FROM invites WHERE secret_sha256 = $1"
_WHY: Final = {
    "used": "it was used already; make a new one with `wai invite create`",
    "revoked": "it was revoked",
    "expired": "it has expired; make a new one with `wai invite create`",
    "open": "it could not be redeemed; try again",
}


def _refused(why: str) -> AuthError:
    return AuthError(f"the relay refused this invite: {why}", Fault.INVITE_INVALID)


def _invite_from_row(row: Row) -> InviteRecord:
    return InviteRecord(
        id=row["id"],
        name=row["name"],
        may_deploy=json.loads(row["options"]).get("may_deploy", True),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        used_at=row["used_at"],
        used_by=row["used_by"],
        revoked_at=row["revoked_at"],
    )
