"""The keys that were revoked last: so that it can be said whose program still uses one."""

from __future__ import annotations

from typing import Final

from wai_relay.contracts.api_keys import ApiKey

MAX_REVOKED: Final = 1000  # each takes 300 bytes


class RevokedKeys:
    """Ids by the hash of the secret, and names by id; the oldest make room for new ones."""

    def __init__(self) -> None:
        self._ids: dict[bytes, str] = {}
        self._names: dict[str, str] = {}

    def remember(self, key: ApiKey) -> None:
        """Know `key` when it is shown again."""
        self._ids[key.sha256] = key.id
        self._names[key.id] = key.name
        if len(self._ids) > MAX_REVOKED:
            self._names.pop(self._ids.pop(next(iter(self._ids))), None)

    def id_of(self, sha256: bytes) -> str:
        """The id of the key whose secret has this hash; "" if none is known."""
        return self._ids.get(sha256, "")

    def name_of(self, key_id: str) -> str | None:
        """The name of the key with this id; None if none is known."""
        return self._names.get(key_id)
