"""The limits of an API key in one line."""

from __future__ import annotations

from typing import Any

from wai_api.limits import LIMITS, KeyLimits, Kind, Limit

from .tables import time_text


def limits_text(limits: KeyLimits) -> str:
    """Return the limits that differ from a new key's, such as "60 req/min, own nodes only"."""
    return ", ".join(
        limit_text(limit, value)
        for limit in LIMITS
        if (value := getattr(limits, limit.attribute)) != limit.default
    )


def limit_text(limit: Limit, value: Any) -> str:
    """Return one limit, such as "60 req/min", or that there is none."""
    if value == limit.default and limit.kind is not Kind.RANK:
        return f"not {limit.unit}" if limit.kind is Kind.SWITCH else f"no limit by {limit.flag}"
    match limit.kind:
        case Kind.COUNT:
            return f"{value} {limit.unit}"
        case Kind.TIME:
            return f"{limit.unit} {time_text(value)}"
        case Kind.NAMES:
            return f"{limit.unit} {' + '.join(value)}"
        case Kind.SWITCH:
            return limit.unit
        case Kind.RANK:
            return f"{limit.unit} {value}"
