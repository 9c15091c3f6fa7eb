"""The nodes that belong to this relay: who they are, not whether they are connected.

The handshake asks here whether a public key may come in. Enrolment is `invites`' act, because a
node comes in by an invite; liveness, models and drains are `nodes`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from wai_api.patterns import NODE_NAME
from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_relay.storage import ConflictError, Row, Store, Write, undone_by_restart

MAX_SET_SLOTS: Final = 64  # upstreams of a node; a box has one to a few
_NODE_NAME: Final = re.compile(NODE_NAME)


class NodeRecord(msgspec.Struct, frozen=True):
    """A node that joined. `public_key` is its Ed25519 key, 32 bytes; `may_deploy`: whether the
    relay may tell it to run models. `drained`: whether an admin said that it shall get no new
    requests. `slots`: by upstream, how many requests it works on at once, where an admin has set
    it."""

    id: str
    name: str
    public_key: bytes
    created_at: float
    tags: tuple[str, ...] = ()
    may_deploy: bool = True
    drained: bool = False
    slots: Mapping[str, int] = msgspec.field(default_factory=dict)
    removed_at: float | None = None

    @property
    def options(self) -> str:
        """What the store keeps as JSON, in a column of its own."""
        kept = {"may_deploy": self.may_deploy, "drained": self.drained, "slots": dict(self.slots)}
        return json.dumps(kept)


class NodeRegistry:
    """All nodes, removed ones too, in memory and in the store. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._by_id: dict[str, NodeRecord] = {}
        self._by_public: dict[bytes, NodeRecord] = {}
        self._unwritten: dict[str, NodeRecord] = {}
        """Removals that the store does not have: a restart would undo them."""
        self._changing = asyncio.Lock()
        """Held while a change is written, and while others' changes are read: so what is read is
        never older than what this relay has written."""

    @classmethod
    async def load(cls, store: Store, clock: Callable[[], float] = time.time) -> NodeRegistry:
        """Everything that the store knows. `clock` gives seconds since 1970."""
        registry = cls(store, clock)
        await registry.follow()
        return registry

    async def follow(self, node_id: str | None = None) -> None:
        """Take over what the store has of one node, or of all: another relay has changed it.

        Raises `StoreError`; then nothing has changed.
        """
        async with self._changing:
            if node_id is None:
                await self._store_removals()
                rows = await self._store.read("SELECT * FROM nodes ORDER BY created_at, id")
            else:
                rows = await self._store.read("SELECT * FROM nodes WHERE id = $1", node_id)
            for node in map(node_from_row, rows):
                self.keep(self._unwritten.get(node.id, node))

    async def _store_removals(self) -> None:
        """Store what could not be stored when it was asked for, if that works now."""
        with contextlib.suppress(StoreError):
            for node_id, removed in list(self._unwritten.items()):
                await self._store.write(_removal(removed))
                del self._unwritten[node_id]

    def removes(self, node_id: str) -> bool:
        """Whether a node was removed, and the store does not have that yet."""
        return node_id in self._unwritten

    async def find_joined(self, public_key: bytes) -> NodeRecord:
        """Do as `by_public_key`, and look into a store that other relays share, by one of which
        the node may have joined just now. Raises `AuthError`, `StoreError`."""
        if public_key not in self._by_public and self._store.shared:
            rows = await self._store.read("SELECT id FROM nodes WHERE public_key = $1", public_key)
            for row in rows:
                await self.follow(row["id"])
        return self.by_public_key(public_key)

    def nodes(self) -> list[NodeRecord]:
        """The nodes that are not removed, in the order in which they joined."""
        return [node for node in self._by_id.values() if node.removed_at is None]

    def get(self, node_id: str) -> NodeRecord | None:
        """The node with this id, unless it was removed."""
        node = self._by_id.get(node_id)
        return node if node is not None and node.removed_at is None else None

    def find(self, name_or_id: str) -> NodeRecord | None:
        """The node that a person means by `name_or_id`."""
        if found := self.get(name_or_id):
            return found
        return next((node for node in self.nodes() if node.name == name_or_id), None)

    def by_public_key(self, public_key: bytes) -> NodeRecord:
        """The node that may come in with this key.

        Raises `AuthError`: NODE_UNKNOWN if it never joined, NODE_REMOVED if it was removed.
        """
        node = self._by_public.get(public_key)
        if node is None:
            raise AuthError(
                "this node has not joined this relay: run `wai node join` with an invite",
                Fault.NODE_UNKNOWN,
            )
        if node.removed_at is not None:
            raise AuthError(
                f"the node {node.name} was removed from this relay; a new invite lets it in again",
                Fault.NODE_REMOVED,
            )
        return node

    def keep(self, node: NodeRecord) -> None:
        """Know a node that the store has (enrolment calls this)."""
        self._by_id[node.id] = node
        self._by_public[node.public_key] = node

    async def remove(self, node_id: str) -> NodeRecord:
        """Let a node in no more; at once, and after a restart.

        Closing the sessions that it has is `nodes`'. Raises `RequestError` (NODE_NOT_FOUND), or
        `StoreError` if it could not be written: then it is out until a restart, and this may be
        called again.
        """
        node = self._unwritten.get(node_id) or self.get(node_id)
        if node is None:
            raise no_such_node(node_id)
        removed = replace(node, removed_at=self._clock())
        self.keep(removed)  # before the disk knows: who removes a node wants it out now
        self._unwritten[node_id] = removed
        try:
            async with self._changing:
                await self._store.write(_removal(removed))
        except StoreError as error:
            raise undone_by_restart(
                f"the node {removed.name} is cut off", error, self._store
            ) from error
        self._unwritten.pop(node_id, None)
        return removed

    async def set_drained(self, node_id: str, *, drained: bool) -> NodeRecord:
        """Keep whether a node shall get new requests, in memory first.

        Raises `RequestError` (NODE_NOT_FOUND), or `StoreError` if it could not be written: then it
        holds until the relay restarts.
        """
        return await self._set(node_id, lambda node: replace(node, drained=drained))

    async def set_slots(self, node_id: str, upstream: str, slots: int | None) -> NodeRecord:
        """Keep how many requests an upstream works on at once; None: it is learned.

        Raises as `set_drained` does, and `RequestError` if too many are set.
        """

        def change(node: NodeRecord) -> NodeRecord:
            kept = {name: n for name, n in node.slots.items() if name != upstream}
            if slots is not None:
                kept[upstream] = slots
            if len(kept) > MAX_SET_SLOTS:
                raise RequestError(f"slots can be set for {MAX_SET_SLOTS} upstreams of a node")
            return replace(node, slots=kept)

        return await self._set(node_id, change)

    async def _set(self, node_id: str, change: Callable[[NodeRecord], NodeRecord]) -> NodeRecord:
        node = self.get(node_id)
        if node is None:
            raise no_such_node(node_id)
        async with self._changing:
            self.keep(change(self._by_id[node_id]))
            try:
                self.keep(await self._store_changed(node_id, change))
            except StoreError as error:
                raise undone_by_restart(
                    f"the node {node.name} is changed", error, self._store
                ) from error
        return self._by_id[node_id]

    async def _store_changed(
        self, node_id: str, change: Callable[[NodeRecord], NodeRecord]
    ) -> NodeRecord:
        """Change what the store has of a node, whatever another relay has changed there since this
        one read it. Raises `StoreError`."""
        while True:
            [row] = await self._store.read("SELECT * FROM nodes WHERE id = $1", node_id)
            changed = change(node_from_row(row))
            write = "UPDATE nodes SET options = $1 WHERE id = $2 AND options = $3"
            values = (changed.options, node_id, row["options"])
            with contextlib.suppress(ConflictError):  # changed between the two: once more
                await self._store.write(Write(write, values, rows=1))
                return changed

    async def rename(self, node_id: str, name: str) -> NodeRecord:
        """Give a node another name. Raises `RequestError` (NODE_NOT_FOUND, NAME_TAKEN)."""
        node = self.get(node_id)
        if node is None:
            raise no_such_node(node_id)
        check_name(name)
        async with self._changing:
            try:
                await self._store.write(
                    Write(
                        "UPDATE nodes SET name = $1 WHERE id = $2 AND removed_at IS NULL",
                        (name, node_id),
                        rows=1,
                    )
                )
            except ConflictError:
                if self.get(node_id) is None:
                    raise no_such_node(node_id) from None
                raise name_taken(name) from None
            current = self._by_id[node_id]
            renamed = replace(current, name=name)  # removed meanwhile: then it stays removed
            self.keep(renamed)
            return renamed


def _removal(removed: NodeRecord) -> Write:
    return Write(
        "UPDATE nodes SET removed_at = $1 WHERE id = $2 AND removed_at IS NULL",
        (removed.removed_at, removed.id),
    )


def check_name(name: str) -> None:
    """Raises `RequestError` for what can't be a node's name."""
    if not _NODE_NAME.fullmatch(name):
        raise RequestError(
            f"{name[:80]!r} can't be a node's name: use 1 to 63 letters, digits, '.', '_' and '-',"
            " beginning with a letter or a digit"
        )


def name_taken(name: str) -> RequestError:
    """Another node has this name."""
    return RequestError(
        f"another node is called {name!r}; choose another name or remove that node first",
        Fault.NAME_TAKEN,
    )


def no_such_node(name_or_id: str) -> RequestError:
    """There is none with this name or id."""
    return RequestError(f"there is no node {name_or_id!r}", Fault.NODE_NOT_FOUND)


def node_from_row(row: Row) -> NodeRecord:
    """A row of `nodes`."""
    options = json.loads(row["options"])
    return NodeRecord(
        id=row["id"],
        name=row["name"],
        public_key=row["public_key"],
        created_at=row["created_at"],
        tags=tuple(json.loads(row["tags"])),
        may_deploy=options.get("may_deploy", True),
        drained=options.get("drained", False),
        slots=options.get("slots", {}),
        removed_at=row["removed_at"],
    )
