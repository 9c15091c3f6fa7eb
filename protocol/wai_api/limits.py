"""The limits of an API key, described once.

Each field of `KeyLimits` carries its text, flag, unit and range. All other descriptions of a limit
are derived from `LIMITS`: the body that changes limits, the flags of `wai key`, the OpenAPI
document, the dashboard's form, and the check of limits that are read from the store. To add a
limit, add a field here, its row in docs/routing.md, and the code that enforces it.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .bounds import MAX_COUNT, MAX_NAME_CHARS, MAX_NAMES, MAX_PRIORITY, MAX_TIME


class Kind(Enum):
    """What a limit's value is, which decides its flag, its input in the form and its text."""

    COUNT = "count"
    """A whole number, or null: no limit."""
    TIME = "time"
    """Seconds since 1970, or null: no limit."""
    NAMES = "names"
    """A list of names; empty: no limit."""
    SWITCH = "switch"
    """True or false."""
    RANK = "rank"
    """A whole number with a default, never null."""


_KIND_OF_TYPE: Final[Mapping[Any, Kind]] = {
    int | None: Kind.COUNT,
    float | None: Kind.TIME,
    tuple[str, ...]: Kind.NAMES,
    bool: Kind.SWITCH,
    int: Kind.RANK,
}


class _Text(Struct, frozen=True, kw_only=True):
    """What a field's `Meta` carries besides its title and description."""

    flag: str
    unit: str
    least: float | None = None
    most: float | None = None


def _limit(
    flag: str,
    label: str,
    unit: str,
    description: str,
    *,
    least: float | None = None,
    most: float | None = None,
) -> Meta:
    """Describe a field of `KeyLimits`; see `Limit` for the arguments.

    The range is not a constraint of the field itself, because the CLI must be able to read the
    answer of a relay whose range is wider. `LimitChanges` has it as a constraint.
    """
    text = _Text(flag=flag, unit=unit, least=least, most=most)
    return Meta(title=label, description=description, extra={"limit": text})


def _count(flag: str, label: str, unit: str, description: str) -> Meta:
    return _limit(flag, label, unit, description, least=1, most=MAX_COUNT)


class KeyLimits(Struct, frozen=True, kw_only=True, rename={"continue_": "continue"}):
    """What a key may use. Null and an empty list mean no limit."""

    rpm: Annotated[
        int | None,
        _count("--rpm", "Requests per minute", "req/min", "At most this many requests a minute"),
    ] = None
    tpm: Annotated[
        int | None,
        _count("--tpm", "Tokens per minute", "tok/min", "At most this many tokens a minute"),
    ] = None
    concurrency: Annotated[
        int | None,
        _count(
            "--concurrency", "Requests at once", "at once", "At most this many requests at once"
        ),
    ] = None
    monthly_tokens: Annotated[
        int | None,
        _count(
            *("--monthly-tokens", "Tokens per month", "tok/month"),
            "At most this many tokens a calendar month (UTC)",
        ),
    ] = None
    expires_at: Annotated[
        float | None,
        _limit(
            *("--expires", "Good until (UTC)", "until"),
            "The key is refused from this time on",
            least=0,
            most=MAX_TIME,
        ),
    ] = None
    models: Annotated[
        tuple[str, ...],
        _limit("--model", "Only these models", "only", "Only these models may be called"),
    ] = ()
    nodes: Annotated[
        tuple[str, ...],
        _limit("--node", "Only these nodes", "only on", "Only these nodes may be used"),
    ] = ()
    local_only: Annotated[
        bool,
        _limit(
            *("--local-only", "Own nodes only, never a provider", "own nodes only"),
            "Requests go to nodes only, never to a cloud provider",
        ),
    ] = False
    priority: Annotated[
        int,
        _limit(
            *("--priority", "Priority in the queue", "priority"),
            "Its weight in the queue: a higher one is served more often",
            least=-MAX_PRIORITY,
            most=MAX_PRIORITY,
        ),
    ] = 0
    continue_: Annotated[
        bool,
        _limit(
            *("--continue", "Continue an answer on another node if its own dies", "continued"),
            "An answer whose node died is continued on another",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a key.

    `name`: in JSON. `attribute`: in Python. `flag`: of `wai key`. `label`: of its input in the
    form. `unit`: the words beside its value in the list of keys. `description`: a sentence
    without its full stop. `least`, `most`: the range, both inclusive; None where there is none.
    """

    name: str
    attribute: str
    kind: Kind
    flag: str
    label: str
    unit: str
    description: str
    least: int | float | None
    most: int | float | None
    default: Any


def limits_of(struct: type[Struct]) -> tuple[Limit, ...]:
    """The limits that a struct's fields describe, in their order.

    Raises `TypeError` for a field that has no description, or a type that is of no `Kind`.
    """
    hints = typing.get_type_hints(struct, include_extras=True)
    limits = []
    for field in msgspec.structs.fields(struct):
        meta = next(iter(getattr(hints[field.name], "__metadata__", ())), None)
        if meta is None or "limit" not in (meta.extra or {}):
            raise TypeError(f"{struct.__name__}.{field.name} has no description: see `_limit`")
        kind = _KIND_OF_TYPE.get(hints[field.name].__origin__)
        if kind is None:
            raise TypeError(f"{struct.__name__}.{field.name}: no `Kind` has this type")
        limits.append(_read(field, kind, meta))
    return tuple(limits)


def changes_of(limits: tuple[Limit, ...], base: type[Struct]) -> type[Struct]:
    """A struct like `base` with these limits as optional fields; each has its range."""
    return msgspec.defstruct(
        "LimitChanges",
        [(limit.attribute, _change_type(limit), UNSET) for limit in limits],
        bases=(base,),
        module=__name__,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        omit_defaults=True,
        rename={limit.attribute: limit.name for limit in limits},
        namespace={"__doc__": base.__doc__},
    )


def clamped(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The limits in `stored` (by attribute), by their JSON names, each number within its range.

    An older relay had a wider range, and a newer one may have limits that we do not know: a number
    outside the range counts as its nearest end, and an unknown limit is left out.
    """
    return {
        limit.name: _within(limit, stored[limit.attribute])
        for limit in LIMITS
        if limit.attribute in stored
    }


def _within(limit: Limit, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if limit.least is not None and value < limit.least:
        return limit.least
    if limit.most is not None and value > limit.most:
        return limit.most
    return value


def _read(field: msgspec.structs.FieldInfo, kind: Kind, meta: Any) -> Limit:
    text: _Text = meta.extra["limit"]
    return Limit(
        name=field.encode_name,
        attribute=field.name,
        kind=kind,
        flag=text.flag,
        label=meta.title,
        unit=text.unit,
        description=meta.description,
        least=text.least,
        most=text.most,
        default=field.default,
    )


def _change_type(limit: Limit) -> Any:
    kept: Any
    match limit.kind:
        case Kind.COUNT:
            kept = Annotated[int, Meta(ge=limit.least, le=limit.most)] | None
        case Kind.TIME:
            kept = Annotated[float, Meta(ge=limit.least, le=limit.most)] | None
        case Kind.NAMES:
            name = Annotated[str, Meta(max_length=MAX_NAME_CHARS)]
            kept = Annotated[tuple[name, ...], Meta(max_length=MAX_NAMES)]
        case Kind.SWITCH:
            kept = bool
        case Kind.RANK:
            kept = Annotated[int, Meta(ge=limit.least, le=limit.most)]
    return Annotated[kept | UnsetType, Meta(title=limit.label, description=limit.description)]


LIMITS: Final = limits_of(KeyLimits)


class _Changes(Struct, frozen=True, kw_only=True):
    """Limits to change; what is left out stays as it is."""

    def applied_to(self, limits: KeyLimits) -> KeyLimits:
        """`limits` with these changes."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        changes = {name: value for name, value in given.items() if value is not UNSET}
        return msgspec.structs.replace(limits, **changes)


if TYPE_CHECKING:  # a type checker cannot see the fields of a struct that is made at run time
    LimitChanges = _Changes
else:
    LimitChanges = changes_of(LIMITS, _Changes)
