"""Keep the Ed25519 key of a node or relay in a data folder. It is never overwritten."""

from __future__ import annotations

from typing import TypeVar

from wai_protocol.errors import AuthError, StoreError
from wai_protocol.identity import IdentityKey

from .folder import DataFolder

K = TypeVar("K", bound=IdentityKey)


def load_or_make(folder: DataFolder, name: str, kind: type[K]) -> K:
    """Load the key from the file `name` (mode 0600), or make one if there is no file yet.

    Raises `StoreError`, also for a damaged file. It is not replaced: the peers know this key, and a
    backup may restore it.
    """
    kept = folder.read(name)
    if kept is None:
        key = kind.generate()
        folder.write(name, key.to_bytes())
        return key
    try:
        return kind.from_bytes(kept)
    except AuthError as error:
        raise StoreError(f"{folder.path / name} is damaged: {error}") from error
