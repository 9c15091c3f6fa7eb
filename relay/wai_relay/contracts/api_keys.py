"""An API key and what it may use, as plain values.

`access.keys` keeps them and recognises a caller's key; `policy.admission` holds a key to its
limits.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may use; None and empty mean without limit.

    `rpm`, `tpm`: requests and tokens a minute. `concurrency`: requests at once. `monthly_tokens`:
    per calendar month, UTC. `expires_at`: seconds since 1970. `models`, `nodes`: the only ones it
    reaches. `local_only`: never a cloud provider. `priority`: higher goes first in the queue.
    `continue_`: an answer whose node died is continued on another.
    """

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    monthly_tokens: int | None = None
    expires_at: float | None = None
    models: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    local_only: bool = False
    priority: int = 0
    continue_: bool = False

    def to_json(self) -> str:
        """As the store keeps it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> KeyLimits:
        """From the store. What a newer version wrote beside it is left alone."""
        fields = {name: value for name, value in json.loads(text).items() if name in cls.__slots__}
        for name in ("models", "nodes"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store knows it. `prefix` is its first characters, to recognise it by.

    `version` grows with every change. `revoked_at` is None for a key that is good.
    """

    id: str
    name: str
    sha256: bytes = field(repr=False)
    prefix: str
    limits: KeyLimits
    version: int
    created_at: float
    revoked_at: float | None = None
