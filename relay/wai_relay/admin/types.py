"""What the admin API takes and gives, as types: JSON is checked against them, OpenAPI made of them.

Times are seconds since 1970. Unknown fields in a request are refused: a mistyped limit must not
pass for no limit.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from wai_relay.access.admins import ADMIN_NAME
from wai_relay.access.keys import MAX_NAME_CHARS
from wai_relay.contracts.api_keys import KeyLimits
from wai_relay.fleet.invites import MAX_TTL_S
from wai_relay.fleet.registry import NODE_NAME

_URL: Final = "^https?://[!-~]+$"
_NODE_NAME: Final = f"^{NODE_NAME.pattern}$"
# Said to whoever wrote a text that does not match: nobody but us should have to read the pattern.
PATTERNS: Final = {
    ADMIN_NAME: "1 to 64 letters, digits, dots, dashes, underscores or `@`",
    _NODE_NAME: "1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first",
    _URL: "an address that begins with https:// (or http://) and has no spaces",
}
Positive = Annotated[int, Meta(ge=1, le=1 << 53)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Names = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=256)]


class Limits(Struct, frozen=True, kw_only=True, rename={"continue_": "continue"}):
    """What a key may use; null and an empty list mean without limit."""

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


class LimitChanges(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"continue_": "continue"},
):
    """Limits to change; what is left out stays as it is."""

    rpm: Positive | UnsetType | None = UNSET
    tpm: Positive | UnsetType | None = UNSET
    concurrency: Positive | UnsetType | None = UNSET
    monthly_tokens: Positive | UnsetType | None = UNSET
    expires_at: Annotated[float, Meta(ge=0, le=100000000000.0)] | UnsetType | None = UNSET
    models: Names | UnsetType = UNSET
    nodes: Names | UnsetType = UNSET
    local_only: bool | UnsetType = UNSET
    priority: Annotated[int, Meta(ge=-100, le=100)] | UnsetType = UNSET
    continue_: bool | UnsetType = UNSET

    def applied_to(self, limits: KeyLimits) -> KeyLimits:
        """`limits` with these changes."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        changes = {name: value for name, value in given.items() if value is not UNSET}
        return dataclasses.replace(limits, **changes)


class KeyView(Struct, frozen=True, kw_only=True):
    """An API key; `prefix` is what of its secret may be shown."""

    id: str
    name: str
    prefix: str
    limits: Limits
    created_at: float
    revoked_at: float | None


class CreateKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to make."""

    name: Name
    limits: LimitChanges = LimitChanges()


class ChangeKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to change."""

    limits: LimitChanges


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """A new key, with its secret, which is shown this once."""

    key: str


class InviteView(Struct, frozen=True, kw_only=True):
    """An invite; `state` is open, used, revoked or expired."""

    id: str
    name: str | None
    state: str
    may_deploy: bool
    created_at: float
    expires_at: float
    used_at: float | None
    used_by: str | None


class CreateInvite(Struct, frozen=True, forbid_unknown_fields=True):
    """An invite to make; without `ttl_s` it is good for as long as the settings say."""

    name: Annotated[str, Meta(pattern=_NODE_NAME)] | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=MAX_TTL_S)] | None = None
    may_deploy: bool = True


class CreatedInvite(InviteView, frozen=True, kw_only=True):
    """A new invite, with its string, which is shown this once. `command` is what a person runs on
    the machine that shall be a node: it installs wai there, joins, and starts it."""

    invite: str
    command: str


class ModelView(Struct, frozen=True, kw_only=True):
    """A model on a node. `context_tokens` is per slot."""

    id: str
    upstream: str
    apis: tuple[str, ...]
    ready: bool
    context_tokens: int | None
    slots_total: int | None
    slots_busy: int
    queued: int
    prefill_tps: float | None
    decode_tps: float | None


class NodeView(Struct, frozen=True, kw_only=True):
    """A node that has joined; `state` is ready, starting (it has not told yet what it serves),
    draining, reconnecting or offline. `models` has their ids, `serving` the same models in detail.
    The slots are those of models that are ready; `slots_total` is null where none tells.
    `connected_at` is since when its session lives, null where it has none; `reconnects` counts how
    often it came back into one. `copied`: a second machine with its identity was found lately, and
    is refused. `detail` is its own word of its hardware and system."""

    id: str
    name: str
    state: str
    models: tuple[str, ...]
    serving: tuple[ModelView, ...]
    slots_total: int | None
    slots_busy: int
    queued: int
    reconnects: int
    copied: bool
    connected_at: float | None
    version: str
    agent: str
    tags: tuple[str, ...]
    may_deploy: bool
    joined_at: float
    detail: dict[str, Any]


class AuditView(Struct, frozen=True, kw_only=True):
    """`actor` did `action` to `subject`."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class SettingsView(Struct, frozen=True, kw_only=True):
    """What can be changed while the relay runs."""

    invite_ttl_s: float
    public_url: str | None
    usage_retention_days: float


class ChangeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings to change; what is left out stays as it is."""

    invite_ttl_s: Annotated[float, Meta(gt=0, le=MAX_TTL_S)] | UnsetType = UNSET
    public_url: Annotated[str, Meta(max_length=512, pattern=_URL)] | UnsetType | None = UNSET
    usage_retention_days: Annotated[float, Meta(gt=0, le=3660)] | UnsetType = UNSET


class WhoAmI(Struct, frozen=True, kw_only=True):
    """The admin whose token this is, and the relay that answers.

    `url`: how nodes reach it. `pin`: where they know it by that and not by an authority, the
    SHA-256 of its certificate's public key, in hex.
    """

    name: str
    version: str
    url: str
    pin: str | None
    time: float


class NodeList(Struct, frozen=True):
    """Every node that has joined."""

    data: tuple[NodeView, ...]


class KeyList(Struct, frozen=True):
    """API keys, oldest first."""

    data: tuple[KeyView, ...]


class InviteList(Struct, frozen=True):
    """Invites, oldest first."""

    data: tuple[InviteView, ...]


class AuditList(Struct, frozen=True):
    """Audit entries, newest first."""

    data: tuple[AuditView, ...]


class ErrorDetail(Struct, frozen=True):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(Struct, frozen=True):
    """Every answer that is not a success."""

    error: ErrorDetail
