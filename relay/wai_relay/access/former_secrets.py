"""The former secrets of keys that were rotated: good for a while, so that programs can follow."""

from __future__ import annotations

from typing import Final, NamedTuple

from wai_protocol.errors import RequestError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.storage import Store, Write

MAX_GOOD: Final = 8  # of one key: more is a program that rotates in a loop
REMEMBERED_S: Final = 30 * 86400.0
"""For so long after its end it is known whose a former secret was."""


class Former(NamedTuple):
    """Whose secret it was, and until when it is good, in seconds since 1970."""

    key_id: str
    good_until: float


class FormerSecrets:
    """Former secrets by their hash. Make it with `load`."""

    def __init__(self) -> None:
        self._by_hash: dict[bytes, Former] = {}
        self._latest: dict[str, float] = {}
        """When the last one of each key ends, by its id."""

    @classmethod
    async def load(cls, store: Store, now: float) -> FormerSecrets:
        """Load those that are good or were lately. Raises `StoreError`."""
        made = cls()
        since = now - REMEMBERED_S
        for row in await store.read("SELECT * FROM api_key_secrets WHERE good_until > $1", since):
            made._add(row["sha256"], Former(row["key_id"], row["good_until"]))
        return made

    def key_id_of(self, sha256: bytes) -> str:
        """Whose secret it was, "" for one that is not known."""
        former = self._by_hash.get(sha256)
        return former.key_id if former is not None else ""

    def good(self, sha256: bytes, now: float) -> str:
        """The id of the key that it opens, "" if it opens none."""
        former = self._by_hash.get(sha256)
        return former.key_id if former is not None and now < former.good_until else ""

    def good_until(self, key_id: str, now: float) -> float | None:
        """Until when the last good one of a key is good; None if it has none."""
        latest = self._latest.get(key_id, now)
        return latest if latest > now else None

    def writes(self, key: ApiKey, good_until: float, now: float) -> list[Write]:
        """What stores the secret that `key` has now as a former one, and forgets old ones.

        Raises `RequestError` if the key has too many.
        """
        mine = [one for one in self._by_hash.values() if one.key_id == key.id]
        if sum(one.good_until > now for one in mine) >= MAX_GOOD:
            raise RequestError(
                f"the key has {MAX_GOOD} former secrets that are good still; rotate it without a"
                " grace, or wait"
            )
        return [
            Write(
                "INSERT INTO api_key_secrets (sha256, key_id, good_until) VALUES ($1, $2, $3)",
                (key.sha256, key.id, good_until),
            ),
            Write("DELETE FROM api_key_secrets WHERE good_until < $1", (now - REMEMBERED_S,)),
        ]

    def keep(self, key: ApiKey, good_until: float, now: float) -> None:
        """Know the secret of `key`, now that it is stored."""
        for sha256 in [
            s for s, one in self._by_hash.items() if one.good_until < now - REMEMBERED_S
        ]:
            del self._by_hash[sha256]
        self._add(key.sha256, Former(key.id, good_until))

    def _add(self, sha256: bytes, former: Former) -> None:
        self._by_hash[sha256] = former
        latest = self._latest.get(former.key_id, former.good_until)
        self._latest[former.key_id] = max(latest, former.good_until)

    def end(self, key_id: str, now: float) -> list[Write]:
        """End all of a key's at once, whatever becomes of the writes, which store that."""
        for sha256, one in list(self._by_hash.items()):
            if one.key_id == key_id:
                self._by_hash[sha256] = one._replace(good_until=min(one.good_until, now))
        self._latest.pop(key_id, None)
        ended = "UPDATE api_key_secrets SET good_until = $1 WHERE key_id = $2 AND good_until > $1"
        return [Write(ended, (now, key_id))]
