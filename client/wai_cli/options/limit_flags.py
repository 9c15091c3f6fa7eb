"""The flags of `wai key` that set limits, derived from the limits' descriptions in `wai_api`."""

from __future__ import annotations

import argparse
from typing import Any

from wai_api.bounds import MAX_COUNT
from wai_api.limits import LIMITS, Kind, Limit

from .values import NONE, between, future_or_none, named, whole_or_none


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each limit; a limit whose flag is not given stays as it is."""
    for limit in LIMITS:
        parser.add_argument(limit.flag, dest=limit.attribute, help=_help(limit), **_reading(limit))


def limits_given(parsed: argparse.Namespace) -> dict[str, Any]:
    """The limits whose flags were given, as the admin API takes them."""
    given = {limit: getattr(parsed, limit.attribute) for limit in LIMITS}
    return {limit.name: _sent(limit, value) for limit, value in given.items() if value is not None}


def _sent(limit: Limit, value: Any) -> Any:
    if limit.kind is Kind.NAMES:
        return [] if value == [NONE] else value
    return None if value == NONE else value


def _reading(limit: Limit) -> dict[str, Any]:
    """How argparse reads the flag."""
    least, most = int(limit.least or 0), int(limit.most or 0)
    match limit.kind:
        case Kind.COUNT:
            return {"metavar": "N", "type": whole_or_none(least, most)}
        case Kind.TIME:
            return {"metavar": "DATE", "type": future_or_none}
        case Kind.NAMES:
            return {"metavar": "NAME", "action": "append", "type": named}
        case Kind.SWITCH:
            return {"action": argparse.BooleanOptionalAction}
        case Kind.RANK:
            return {"metavar": "N", "type": between(least, most)}


def _help(limit: Limit) -> str:
    text = limit.description[0].lower() + limit.description[1:]
    match limit.kind:
        case Kind.COUNT if limit.most == MAX_COUNT:
            return f"{text}, or none: no limit"
        case Kind.COUNT:
            return f"{text}, {limit.least} to {limit.most}, or none: no limit"
        case Kind.TIME:
            return f"{text}: 2027-01-31 (UTC), or none"
        case Kind.NAMES:
            return f"{text} (repeat for more), or none: all"
        case Kind.SWITCH:
            return text
        case Kind.RANK:
            return f"{text}, {limit.least} to {limit.most} (default: {limit.default})"
