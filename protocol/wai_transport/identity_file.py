"""An Ed25519 key in a data folder, a node's or a relay's: made once, never overwritten."""

from __future__ import annotations

from typing import TypeVar

from wai_protocol.errors import AuthError, StoreError
from wai_protocol.identity import IdentityKey

from .folder import DataFolder

K = TypeVar("K", bound=IdentityKey)


def load_or_make(folder: DataFolder, name: str, kind: type[K]) -> K:
    """The key in the file `name` (0600), made if there is none yet. Raises `StoreError`.

    A damaged one stays as it is: the other side knows us by it, and a backup may bring it back.
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
