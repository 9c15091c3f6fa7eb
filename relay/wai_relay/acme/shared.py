"""What relays with one domain share of their certificate, in the store that they share.

The account's key and the certificate are sealed with the cluster key, which is in a file on each
relay's machine and never in the store. A challenge is told to all relays, since nobody knows which
of them the authority will meet. Who renews is decided elsewhere (`storage.housekeeping`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wai_protocol.errors import StoreError, WaiError
from wai_relay.storage import Row, Store, Write
from wai_transport.folder import DataFolder

from .proof import Proof

MIN_KEY_BYTES: Final = 32
MAX_KEY_BYTES: Final = 4096
_INFO: Final = b"wai shared certificate"
_NONCE_BYTES: Final = 12

KNOWN_S: Final = 2.0
"""How long after a challenge was told the authority is asked to look: every relay shows it then."""

CHALLENGE_S: Final = 300.0
"""A challenge of a relay that died is shown no longer than this."""

_log = logging.getLogger("wai.acme")


def read_cluster_key(file: Path) -> bytes:
    """Return the secret that all relays of a fleet have. Raises `StoreError`."""
    try:
        with file.open("rb") as opened:
            key = opened.read(MAX_KEY_BYTES + 1).strip()
    except OSError as error:
        raise StoreError(f"{file} with the cluster key: {error.strerror}") from error
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise StoreError(
            f"{file} has no cluster key: it is {MIN_KEY_BYTES} characters or more, such as"
            " `openssl rand -hex 32` prints, the same on every relay"
        )
    return key


class SharedCertificate:
    """Files in `folder` whose newest version is in the store, and challenges of all relays, for the
    relays that have `domain`."""

    def __init__(
        self, store: Store, own_id: str, domain: str, key: bytes, folder: DataFolder
    ) -> None:
        self._store = store
        self._own_id = own_id
        self._domain = domain
        self._cipher = ChaCha20Poly1305(HKDF(SHA256(), 32, salt=None, info=_INFO).derive(key))
        self._folder = folder
        self._shown: dict[str, tuple[Row, asyncio.Task[None]]] = {}

    # -- files

    async def fetch(self) -> set[str]:
        """Write the files that another relay has published; return the names of those that are new
        here. Raises `StoreError`, also for what another cluster key has sealed."""
        fresh: set[str] = set()
        query = "SELECT name, sealed FROM shared_files WHERE domain = $1"
        for row in await self._store.read(query, self._domain):
            name, content = row["name"], self._opened(row["name"], row["sealed"])
            if self._folder.read(name) != content:
                self._folder.write(name, content)
                fresh.add(name)
        return fresh

    async def publish(self, name: str) -> None:
        """Give the other relays a file as it is here now. Raises `StoreError`."""
        content = self._folder.read(name)
        if content is None:
            return
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, content, self._meant(name))
        await self._store.write(
            Write(
                "INSERT INTO shared_files (domain, name, sealed, changed_at)"
                " VALUES ($1, $2, $3, wai_now()) ON CONFLICT (domain, name) DO UPDATE SET"
                " sealed = excluded.sealed, changed_at = excluded.changed_at",
                (self._domain, name, sealed),
            )
        )

    def _meant(self, name: str) -> bytes:
        """What a sealed file is bound to: nobody can put one in another's place."""
        return f"{self._domain}/{name}".encode()

    def _opened(self, name: str, sealed: bytes) -> bytes:
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, rest, self._meant(name))
        except (InvalidTag, ValueError):
            raise StoreError(
                f"{name} in the database was sealed with another cluster key: give every relay the"
                " same cluster_key_file, or remove the rows of the table shared_files"
            ) from None

    # -- challenges

    @asynccontextmanager
    async def told(self, domain: str, token: str, authorization: str) -> AsyncIterator[None]:
        """Within the block the other relays show a challenge too. Raises `StoreError`."""
        await self._store.write(
            Write(
                "INSERT INTO acme_challenges (relay, domain, token, key_authorization, ends_at)"
                " VALUES ($1, $2, $3, $4, wai_now() + $5) ON CONFLICT (relay) DO UPDATE SET"
                " domain = excluded.domain, token = excluded.token,"
                " key_authorization = excluded.key_authorization, ends_at = excluded.ends_at",
                (self._own_id, domain, token, authorization, CHALLENGE_S),
            )
        )
        await asyncio.sleep(KNOWN_S)
        try:
            yield
        finally:
            await self._store.write(
                Write("DELETE FROM acme_challenges WHERE relay = $1", (self._own_id,))
            )

    async def follow_challenges(self, proof: Proof) -> None:
        """Show the challenges of the other relays, and no longer those that are over. Raises
        `StoreError`."""
        rows = await self._store.read(
            "SELECT relay, domain, token, key_authorization FROM acme_challenges"
            " WHERE relay <> $1 AND ends_at > wai_now()",
            self._own_id,
        )
        wanted = {row["relay"]: row for row in rows}
        for relay, (row, task) in list(self._shown.items()):
            if wanted.get(relay) != row:
                del self._shown[relay]
                task.cancel()
                await asyncio.wait((task,))
        for relay, row in wanted.items():
            if relay not in self._shown:
                task = asyncio.get_running_loop().create_task(_show(proof, row))
                self._shown[relay] = (row, task)

    async def close(self) -> None:
        """Show no challenge any more."""
        tasks = [task for _, task in self._shown.values()]
        self._shown.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _show(proof: Proof, row: Row) -> None:
    try:
        async with proof.shown(row["domain"], row["token"], row["key_authorization"]):
            await asyncio.sleep(CHALLENGE_S)
    except WaiError as error:
        _log.warning("another relay's challenge can't be shown here: %s", error)
